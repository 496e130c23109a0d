"""Rows of JSONL, JSON and Parquet files, on this machine or wherever fsspec reaches (gs://)."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from rmr1_jax.errors import UserError
from rmr1_jax.judging import RecordError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
# What `datasets` and the hub put beside the data.
_NO_DATA = ("dataset_info.json", "dataset_infos.json", "state.json")
_BOM = b"\xef\xbb\xbf"


def is_remote(name: str) -> bool:
    """Whether a file is named by a URL, as in gs://bucket/pairs.jsonl."""
    return "://" in name


def data_files(name: str) -> list[str]:
    """The file itself, or the data files below a directory, in order of name. Raises UserError."""
    found = _remote_files(name) if is_remote(name) else _local_files(Path(name))
    if found in ([name], [str(Path(name))]):
        return found
    files = [file for file in found if file.endswith(SUFFIXES)]
    if not files:
        raise UserError(f"{name}: holds no file of data; it needs some of {', '.join(SUFFIXES)}")
    return sorted(files)


def file_rows(name: str | Path) -> Iterator[tuple[int, object]]:
    """(number from 1, record or undecoded line) of each row: `.json` (a list), `.parquet`, anything
    else JSONL, gzipped if it ends in `.gz`.

    JSONL is read line by line, Parquet in batches, JSON as a whole. Raises UserError.
    """
    path = str(name)
    try:
        if path.endswith(".json"):
            yield from _json_rows(path)
        elif path.endswith(".parquet"):
            yield from _parquet_rows(path)
        else:
            yield from _lines(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); give a file of preferences"
        ) from error
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}: is cut short or damaged ({error}); get it again") from error


def decode_row(raw: object) -> object:
    """A line as the record it holds; anything else as it is. Raises RecordError."""
    if not isinstance(raw, bytes):
        return raw
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RecordError(
            "line",
            f"is not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start}); save it as UTF-8",
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecordError("line", f"is not JSON ({error}); write one object a line") from error


def row_text(raw: object) -> str:
    """A row as a rejects file shows it."""
    if isinstance(raw, bytes):
        return raw.decode("utf-8", "replace")
    return json.dumps(raw, ensure_ascii=False, default=str)


def _visible(parts: Sequence[str]) -> bool:
    return parts[-1] not in _NO_DATA and not any(part.startswith((".", "_")) for part in parts)


def _open(name: str) -> IO[bytes]:
    if not is_remote(name):
        return Path(name).open("rb")
    system, path = _remote(name)
    file: IO[bytes] = system.open(path, "rb")
    return file


def _remote(name: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(name)
    except ImportError as error:
        raise UserError(f"{name}: cannot be reached ({error}); install what it names") from error
    except ValueError as error:
        raise UserError(f"{name}: cannot be reached ({error}); give a path or gs://...") from error
    return system, path


def _local_files(path: Path) -> list[str]:
    if path.is_dir():
        return [
            str(file)
            for file in path.rglob("*")
            if file.is_file() and _visible(file.relative_to(path).parts)
        ]
    if not path.exists():
        raise UserError(f"{path}: there is no such file or directory")
    return [str(path)]


def _remote_files(name: str) -> list[str]:
    system, path = _remote(name)
    try:
        if system.isfile(path):
            return [name]
        root = path.rstrip("/") + "/"
        found = [
            system.unstrip_protocol(file)
            for file in system.find(path)
            if _visible(file.removeprefix(root).split("/"))
        ]
    except Exception as error:  # each kind of store has its own
        raise UserError(
            f"{name}: cannot be listed ({error}); check the name and that you may read it"
        ) from error
    if not found:
        raise UserError(f"{name}: there is no such file or directory")
    return found


def _lines(name: str) -> Iterator[tuple[int, bytes]]:
    with _open(name) as raw, gzip.open(raw) if name.endswith(".gz") else raw as file:
        for number, line in enumerate(file, start=1):
            stripped = (line.removeprefix(_BOM) if number == 1 else line).strip()
            if stripped:
                yield number, stripped


def _json_rows(name: str) -> Iterator[tuple[int, object]]:
    try:
        with _open(name) as file:
            records = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{name}: is not JSON ({error}): it was cut short or damaged, so get it again; if it "
            "holds one record a line, name it .jsonl"
        ) from error
    if not isinstance(records, list):
        raise UserError(f"{name}: is not a list of records; make it one, or use a .jsonl file")
    yield from enumerate(records, start=1)


def _parquet_rows(name: str) -> Iterator[tuple[int, object]]:
    import pyarrow as pa  # here, since it takes a while to import
    import pyarrow.parquet as pq

    try:
        with _open(name) as file:
            number = 0
            for batch in pq.ParquetFile(file).iter_batches(batch_size=64):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except pa.ArrowException as error:
        raise UserError(f"{name}: is no readable Parquet file ({error}); get it again") from error
