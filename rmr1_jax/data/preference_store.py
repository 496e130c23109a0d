"""The example store: ArrayRecord shards that our reader, Grain and TFDS open at random.

    directory/
      store.json                        written last: a store without it is not complete
      NAME/1.0.0/                       as TFDS lays a data set out below its data_dir
        NAME-train.array_record-00000-of-00003 ...
        features.json dataset_info.json

so that `tfds.data_source(NAME, data_dir=directory)` finds it. While it is written, a whole shard is
called ...-00000, and the one in progress ...-00001.part.
"""

import hashlib
import json
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rmr1_jax.data.record_shards import ExampleSplit, Shard, SplitWriter, unwritable
from rmr1_jax.data.tf_example import tfds_features
from rmr1_jax.errors import UserError
from rmr1_jax.io.atomic_write import atomic_write

INDEX = "store.json"
FORMAT = 1
VERSION = "1.0.0"
_NAME = re.compile(r"[a-zA-Z]\w*")


def is_complete(directory: str | Path) -> bool:
    """Whether a store was finished in this directory."""
    return (Path(directory) / INDEX).is_file()


class StoreWriter:
    """Writes a store; opened again on what a killed run left, it goes on after the whole shards.

    For each split ask `split(name).done` and skip as many examples: the result is byte for byte
    that of a run never killed, if the same examples come in the same order with the same
    `shard_records`. Nothing but the shards in progress is held open, and no example in memory.

    Args:
      directory: the store; other files may lie in it.
      name: what TFDS calls the data set: letters, digits and underscores.
      shard_records: examples in a file.

    Raises UserError where a complete store is there already, or where it cannot be written.
    """

    def __init__(self, directory: str | Path, name: str, shard_records: int = 10_000) -> None:
        self.directory, self.name, self.shard_records = Path(directory), name, shard_records
        if not _NAME.fullmatch(name):
            raise UserError(f"a data set cannot be called {name!r}; use letters, digits and _")
        if is_complete(directory):
            raise UserError(
                f"{directory}: holds a complete store; write to another directory, or delete it"
            )
        self._shards_directory = self.directory / name / VERSION
        try:
            self._shards_directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.directory, error) from error
        self._splits: dict[str, SplitWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for split in self._splits.values():
            split.abandon()

    def split(self, name: str) -> SplitWriter:
        """The writer of a split, the same one at every call."""
        if name not in self._splits:
            if not _NAME.fullmatch(name):
                raise UserError(f"a split cannot be called {name!r}; use letters, digits and _")
            stem = f"{self.name}-{name}.array_record"
            self._splits[name] = SplitWriter(self._shards_directory, stem, self.shard_records)
        return self._splits[name]

    def finish(self, about: dict[str, Any]) -> None:
        """Give the shards their final names and write the index; `about` must be plain JSON."""
        splits = {name: split.finish() for name, split in self._splits.items()}
        index = {
            "format": FORMAT,
            "name": self.name,
            "version": VERSION,
            "splits": splits,
            "about": about,
        }
        text = json.dumps(index, indent=1, ensure_ascii=False)
        try:
            self._write_tfds_metadata(splits)
        except OSError as error:
            raise unwritable(self.directory, error) from error
        atomic_write(self.directory / INDEX, text + "\n")

    def _write_tfds_metadata(self, splits: dict[str, list[dict[str, Any]]]) -> None:
        import tensorflow_datasets as tfds

        if not any(splits.values()):
            return  # TFDS knows no data set without records
        template = tfds.core.ShardedFileTemplate(
            dataset_name=self.name,
            data_dir=self._shards_directory,
            filetype_suffix="array_record",
        )
        tfds.folder_dataset.write_metadata(
            data_dir=self._shards_directory,
            features=tfds_features(),
            split_infos=[
                tfds.core.SplitInfo(
                    name=name,
                    shard_lengths=[shard["records"] for shard in shards],
                    num_bytes=sum(shard["bytes"] for shard in shards),
                    filename_template=template,
                )
                for name, shards in splits.items()
                if shards
            ],
            version=VERSION,
            check_data=False,  # it would need TensorFlow
        )


class ExampleStore:
    """Opens a complete store.

    `splits` maps each split to its number of examples, `about` is what the writer said of it, and
    `fingerprint` a digest of its content.

    Raises UserError for a store that is absent, not complete, or lacks a shard.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        if not is_complete(directory):
            raise UserError(self._why_not_complete())
        try:
            index = json.loads((self.directory / INDEX).read_text(encoding="utf-8"))
            if index["format"] != FORMAT:
                raise UserError(
                    f"{self.directory}: was written in format {index['format']}, and this version "
                    f"reads {FORMAT}; make it again"
                )
            self.name: str = index["name"]
            self.about: dict[str, Any] = index["about"]
            self._shards: dict[str, list[dict[str, Any]]] = index["splits"]
            self._root = self.directory / self.name / index["version"]
            self.splits = {
                name: sum(shard["records"] for shard in shards)
                for name, shards in self._shards.items()
            }
            self._check_shards()
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{self.directory / INDEX}: is damaged ({error!r}); make the store again"
            ) from error
        content = json.dumps(self._shards, sort_keys=True).encode("utf-8")
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def split(self, name: str) -> ExampleSplit:
        """Random access to the examples of a split. Raises UserError for one that is not there."""
        if name not in self._shards:
            known = ", ".join(self._shards) or "none"
            raise UserError(f"{self.directory}: has no split {name!r}; it has {known}")
        return ExampleSplit(
            tuple(
                Shard(str(self._root / shard["file"]), shard["records"])
                for shard in self._shards[name]
            )
        )

    def _check_shards(self) -> None:
        for shard in (shard for shards in self._shards.values() for shard in shards):
            path = self._root / shard["file"]
            found = path.stat().st_size if path.is_file() else None
            if found != shard["bytes"]:
                state = "is missing" if found is None else f"has {found} bytes"
                raise UserError(
                    f"{path}: {state}, the index says {shard['bytes']}; "
                    "copy the store again, or delete it and make it again"
                )

    def _why_not_complete(self) -> str:
        if not self.directory.is_dir():
            return f"{self.directory}: there is no such directory; make it with --stage=prepare"
        if any(self.directory.glob(f"*/{VERSION}/*.array_record-*")):
            return (
                f"{self.directory}: is not complete; run the command that was writing it once more"
            )
        return f"{self.directory}: is no store of examples; make one with --stage=prepare"
