"""A file of records that a stage resumes after a kill: appended one by one, none half written.

Beside `verdicts.jsonl` lies `verdicts.jsonl.run.json`: the settings that its records were made
with. A run with other settings may not append to the same file.
"""

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rmr1_jax.errors import UserError
from rmr1_jax.io.run_directory import resume_or_refuse, write_settings

GO_ON = "run the same command again: it resumes after the last finished record"


class RecordLog:
    """Opens (or creates) `path`, cuts off a record that a kill left half written, and appends.

    One process at a time holds it. The settings are in `info`, by default beside it. Raises
    UserError if the file cannot be opened or written.
    """

    def __init__(self, path: Path, *, info: Path | None = None) -> None:
        self.path = path
        self._info_path = info or path.with_name(path.name + ".run.json")
        self.count = 0  # whole records in the file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); choose another --output"
            ) from error
        try:
            self._lock()
            self._refuse_foreign_file()
            self._end = self._cut_half_record()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def records(self) -> Iterator[dict[str, Any]]:
        """The records that are in the file, one by one."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if not isinstance(record, dict) or not isinstance(record.get("id"), str):
                    raise UserError(
                        f"{self.path}, line {number}: is no record of this stage; "
                        "choose another --output, or delete this one to start again"
                    )
                yield record

    def append(self, record: Mapping[str, object]) -> None:
        """Write one record and wait until it is on the disk."""
        # No surrogates get here from preferences or tokenizers; "replace" keeps it that way.
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        data = memoryview(line + b"\n")
        size = len(data)
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); the {self.count} records "
                f"before are kept. Fix that and {GO_ON}"
            ) from error
        self._end += size
        self.count += 1

    def check_settings(
        self, settings: Mapping[str, object], *, even_if_empty: bool = False
    ) -> None:
        """Refuse to resume with settings other than the records were made with.

        Settings that are recorded but not in `settings` are not compared. None are as long as there
        is no record, unless asked for: other files may have been made with them.
        """
        if self.count or even_if_empty:
            resume_or_refuse(self._info_path, {"settings": settings})

    def write_run_info(self, info: Mapping[str, object]) -> None:
        """Record the settings, whole or not at all."""
        write_settings(self._info_path, info)

    def _lock(self) -> None:
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise UserError(f"{self.path}: is no ordinary file, so a run could not be resumed")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{self.path}: another run is writing it; wait for that run or choose another "
                "--output"
            ) from error

    def _refuse_foreign_file(self) -> None:
        # Before anything is cut off: the settings are always there before the first byte is.
        if os.fstat(self._file).st_size > 0 and not self._info_path.exists():
            raise UserError(
                f"{self.path}: exists, and there is no {self._info_path.name} beside it to say how "
                "it was made; choose another --output, or delete this one"
            )

    def _cut_half_record(self) -> int:
        """Count the records, drop what follows the last line end, and move to the end."""
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    self.count += 1
                    end += len(line)
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
        return end
