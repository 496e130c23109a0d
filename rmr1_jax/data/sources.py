"""Preferences from JSONL, JSON and Parquet files, and the file that bad records go to."""

import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rmr1_jax.errors import UserError
from rmr1_jax.judging import Preference, RecordError, preference_from_record

# (line number from 1, reason, the line itself)
Rejects = Callable[[int, str, str], None]

_BOM = b"\xef\xbb\xbf"


def read_preferences(path: str | Path, *, rejects: Rejects) -> Iterator[Preference]:
    """Preferences of a file, in order: `.json` (a list), `.parquet`, anything else JSONL.

    JSONL (also gzipped, `.gz`) is read line by line: apart from one line, memory holds 16 bytes and
    a number for each id seen. A record without an id gets its line number as id; in a list or a
    Parquet file that is the number of the record, from 1. A record that is no preference, or
    repeats an id, goes to `rejects` and reading goes on.

    Raises UserError for a file that cannot be read or holds no records, at the call wherever the
    first record shows it.
    """
    path = Path(path)
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: holds no records; give a file with at least one preference")
    return _preferences(itertools.chain([first], rows), rejects)


def _preferences(rows: Iterator[tuple[int, object]], rejects: Rejects) -> Iterator[Preference]:
    seen: dict[bytes, int] = {}
    for number, raw in rows:
        try:
            preference = preference_from_record(_decode(raw), default_id=str(number))
            digest = hashlib.blake2b(preference.id.encode("utf-8"), digest_size=16).digest()
            if digest in seen:
                raise RecordError(
                    "id",
                    f"{preference.id!r} was given to line {seen[digest]}; make ids unique",
                )
        except RecordError as error:
            rejects(number, str(error), _source_text(raw))
            continue
        seen[digest] = number
        yield preference


def _decode(raw: object) -> object:
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


def _source_text(raw: object) -> str:
    if isinstance(raw, bytes):
        return raw.decode("utf-8", "replace")
    return json.dumps(raw, ensure_ascii=False, default=str)


def _rows(path: Path) -> Iterator[tuple[int, object]]:
    """(number from 1, record or undecoded line) of each row; read errors become UserError."""
    try:
        if path.suffix == ".json":
            yield from _json_rows(path)
        elif path.suffix == ".parquet":
            yield from _parquet_rows(path)
        else:
            yield from _lines(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); give a file of preferences"
        ) from error
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}: is cut short or damaged ({error}); get it again") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
        for number, line in enumerate(file, start=1):
            stripped = (line.removeprefix(_BOM) if number == 1 else line).strip()
            if stripped:
                yield number, stripped


def _json_rows(path: Path) -> Iterator[tuple[int, object]]:
    try:
        records = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: is not JSON ({error}); if it holds one record a line, name it .jsonl"
        ) from error
    if not isinstance(records, list):
        raise UserError(f"{path}: is not a list of records; make it one, or use a .jsonl file")
    yield from enumerate(records, start=1)


def _parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    import pyarrow as pa  # here, since it takes a while to import
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            number = 0
            for batch in pq.ParquetFile(file).iter_batches(batch_size=64):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except pa.ArrowException as error:
        raise UserError(f"{path}: is no readable Parquet file ({error}); get it again") from error


class RejectsFile:
    """Appends each bad record to a JSONL file as {"line", "reason", "text"}, text cut to 500.

    Usable as the `rejects` of `read_preferences`. The file appears with the first reject. What an
    earlier run of the same command already wrote is not written again. `count` is the number of
    rejects of this run. Raises UserError where the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.count = 0
        self._written: set[bytes] | None = None

    def __call__(self, line: int, reason: str, text: str) -> None:
        self.count += 1
        record = {"line": line, "reason": reason, "text": text[:500]}
        entry = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")
        try:
            if self._written is None:
                self._written = self._earlier()
            if entry not in self._written:
                with self.path.open("ab") as file:
                    file.write(entry + b"\n")
                self._written.add(entry)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror or error}); "
                "free space or choose another output"
            ) from error

    def _earlier(self) -> set[bytes]:
        if not self.path.exists():
            return set()
        lines = self.path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # a run was killed while writing it
            with self.path.open("r+b") as file:
                file.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        return {line.removesuffix(b"\n") for line in lines}
