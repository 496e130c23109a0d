"""Files and directories that are whole or absent, whatever interrupts their writing."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rmr1_jax.errors import UserError

# Lists what was written to a directory, so that only an untouched earlier result is replaced.
MARKER = "rmr1_jax.json"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """An open file that takes the place of `path` once the block ends without an error.

    Directories are made as needed. An error leaves what was at `path`; those of the operating
    system become a UserError.
    """
    # Another process may be writing the same file.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "free space or choose another place, and run the same command again"
        ) from error


def atomic_write(path: Path, text: str) -> Path:
    """Write a text file beside its place, then move it there. Raises UserError."""
    with atomic_file(path) as file:
        # No surrogates get here from data or tokenizers; "replace" keeps it that way.
        file.write(text.encode("utf-8", "replace"))
    return path


@contextmanager
def replace_directory(target: Path, about: dict[str, Any]) -> Iterator[Path]:
    """A temporary directory that becomes `target` once the block ends without an error.

    `about` goes into the marker file, beside the list of what was written. Raises `UserError` if
    `target` holds anything that an earlier call did not write, and for a full disk, a missing
    permission and the like.
    """
    target = target.absolute()
    refuse_to_overwrite(target)
    temporary = target.with_name(f".{target.name}.incomplete")
    replaced = target.with_name(f".{target.name}.replaced")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        entries = sorted(entry.name for entry in temporary.iterdir())
        marker = json.dumps({**about, "entries": entries}, indent=2)
        (temporary / MARKER).write_text(marker + "\n", encoding="utf-8")
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        temporary.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException as error:
        _remove_for_good(temporary)
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"{target} cannot be written: {error.strerror or error}. Free space, or fix the "
            "permissions, or name another directory."
        ) from error


def _remove_for_good(directory: Path) -> None:
    """The threads of a writer that failed run on for a while and would create it again."""
    absent = 0
    for _ in range(40):
        absent = 0 if directory.exists() else absent + 1
        if absent == 3:
            return
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.25)


def read_marker(directory: Path) -> dict[str, Any] | None:
    """What `replace_directory` noted about a directory; None if it did not write it."""
    try:
        marker = json.loads((directory / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and isinstance(marker.get("entries"), list) else None


def refuse_to_overwrite(target: Path) -> None:
    """Raises `UserError` if `target` holds anything that `replace_directory` did not write."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file. Name a directory that does not exist yet.")
    marker = read_marker(target)
    ours = {MARKER, *marker["entries"]} if marker else set()
    others = sorted(entry.name for entry in target.iterdir() if entry.name not in ours)
    if others:
        raise UserError(
            f"{target} is not empty and was not written by an earlier run (it holds "
            f"{', '.join(others[:3])}{' ...' if len(others) > 3 else ''}). "
            "Name another directory, or empty this one."
        )
