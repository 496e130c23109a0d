"""The shards of one split: written one after the other, read at random."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from rmr1_jax.data.example import Example
from rmr1_jax.data.tf_example import decode, encode
from rmr1_jax.errors import UserError


class SplitWriter:
    """Writes the shards of one split, one after the other."""

    def __init__(self, directory: Path, stem: str, shard_records: int) -> None:
        self._directory, self._stem, self._shard_records = directory, stem, shard_records
        self._shards = self._earlier_shards()
        self._writer: ArrayRecordWriter | None = None
        self._open_records = 0
        self.done = sum(records for _, records in self._shards)
        """Examples in the shards of an earlier run: the caller skips as many."""

    @property
    def count(self) -> int:
        """Examples written so far, those of an earlier run included."""
        return sum(records for _, records in self._shards) + self._open_records

    def append(self, example: Example) -> None:
        """Raises UserError where the disk does not take it."""
        record = encode(example)
        try:
            if self._writer is None:
                self._writer = ArrayRecordWriter(str(self._part), "group_size:1")
            self._writer.write(record)
            self._open_records += 1
            if self._open_records == self._shard_records:
                self._close_shard()
        except (OSError, RuntimeError) as error:
            raise unwritable(self._directory, error) from error

    def finish(self) -> list[dict[str, Any]]:
        """Close the last shard and give all of them their final names; what the index says."""
        try:
            self._close_shard()
            described = []
            for number, (path, records) in enumerate(self._shards):
                final = self._path(f"-{number:05d}-of-{len(self._shards):05d}")
                path.replace(final)
                with final.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = final.stat().st_size
                described.append(
                    {"file": final.name, "records": records, "bytes": size, "sha256": digest}
                )
        except (OSError, RuntimeError) as error:
            raise unwritable(self._directory, error) from error
        return described

    def abandon(self) -> None:
        """Remove the shard in progress, if any."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._part.unlink(missing_ok=True)

    @property
    def _part(self) -> Path:
        return self._path(f"-{len(self._shards):05d}.part")

    def _path(self, suffix: str) -> Path:
        return self._directory / f"{self._stem}{suffix}"

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        part = self._part
        self._writer.close()
        self._writer = None
        whole = self._path(f"-{len(self._shards):05d}")
        part.replace(whole)
        self._shards.append((whole, self._open_records))
        self._open_records = 0

    def _earlier_shards(self) -> list[tuple[Path, int]]:
        """Whole shards from the first on; what lies after a gap or damage is made again."""
        found: dict[int, Path] = {}
        for path in sorted(self._directory.glob(f"{self._stem}-*")):
            if match := re.fullmatch(r"-(\d{5})(-of-\d{5})?", path.name.removeprefix(self._stem)):
                found[int(match[1])] = path
            else:
                path.unlink()
        whole: list[tuple[Path, int]] = []
        for number in range(len(found)):
            records = _record_count(found[number]) if number in found else 0
            if records == 0 or (whole and whole[-1][1] != self._shard_records):
                break
            whole.append((found[number], records))
        for path in set(found.values()) - {path for path, _ in whole}:
            path.unlink()
        return whole


@dataclass(frozen=True)
class Shard:
    """A file and its number of records, in the terms of ArrayRecordDataSource."""

    filename: str
    take: int
    skip: int = 0

    @property
    def examples_in_shard(self) -> int:
        return self.take


class ExampleSplit:
    """Random access to examples; a source for `grain.MapDataset`, and picklable."""

    def __init__(self, shards: tuple[Shard, ...]) -> None:
        self.shards = shards
        self._records = ArrayRecordDataSource(shards) if shards else None

    def __len__(self) -> int:
        return sum(shard.take for shard in self.shards)

    def __getitem__(self, index: int) -> Example:
        """Raises IndexError outside the split, UserError for a damaged shard."""
        if not 0 <= index < len(self) or self._records is None:
            raise IndexError(index)
        try:
            return decode(self._records[index])
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{self._name_of(index)}: is damaged ({error}); "
                "copy the store again, or delete it and make it again"
            ) from error

    def __reduce__(self) -> tuple[type["ExampleSplit"], tuple[tuple[Shard, ...]]]:
        return ExampleSplit, (self.shards,)

    def _name_of(self, index: int) -> str:
        for shard in self.shards:
            if index < shard.take:
                return f"{shard.filename}, record {index}"
            index -= shard.take
        raise IndexError(index)


def _record_count(path: Path) -> int:
    """The records of a shard, 0 where it is damaged."""
    try:
        reader = ArrayRecordReader(str(path))
        try:
            return int(reader.num_records())
        finally:
            reader.close()
    except RuntimeError:
        return 0


def unwritable(directory: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(
        f"{directory}: cannot be written ({reason}); free space or choose another directory"
    )
