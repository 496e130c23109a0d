"""Preferences of a file, one after the other, and the file that bad records go to."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from rmr1_jax.data.row_files import decode_row, file_rows, row_text
from rmr1_jax.errors import UserError
from rmr1_jax.judging import Preference, RecordError, preference_from_record

# (line number from 1, reason, the line itself)
Rejects = Callable[[int, str, str], None]


def read_preferences(path: str | Path, *, rejects: Rejects) -> Iterator[Preference]:
    """Preferences of a file, in order: `.json` (a list), `.parquet`, anything else JSONL.

    JSONL (also gzipped, `.gz`) is read line by line: apart from one line, memory holds 16 bytes and
    a number for each id seen. A record without an id gets its line number as id; in a list or a
    Parquet file that is the number of the record, from 1. A record that is no preference, or
    repeats an id, goes to `rejects`, and reading continues.

    Raises UserError for a file that cannot be read or holds no records, at the call wherever the
    first record shows it.
    """
    path = Path(path)
    rows = file_rows(path)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: holds no records; give a file with at least one preference")
    return _preferences(itertools.chain([first], rows), rejects)


def _preferences(rows: Iterator[tuple[int, object]], rejects: Rejects) -> Iterator[Preference]:
    seen: dict[bytes, int] = {}
    for number, raw in rows:
        try:
            preference = preference_from_record(decode_row(raw), default_id=str(number))
            digest = hashlib.blake2b(preference.id.encode("utf-8"), digest_size=16).digest()
            if digest in seen:
                raise RecordError(
                    "id",
                    f"{preference.id!r} was given to line {seen[digest]}; make ids unique",
                )
        except RecordError as error:
            rejects(number, str(error), row_text(raw))
            continue
        seen[digest] = number
        yield preference


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
