"""Writing a directory all or nothing, and never over something that is not ours."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rmr1_jax.errors import UserError

# Lists what was written, so that only an untouched earlier result is ever replaced.
MARKER = "rmr1_jax.json"


@contextmanager
def replace_directory(target: Path, about: dict[str, Any]) -> Iterator[Path]:
    """A temporary directory that becomes `target` when the block ends without an error.

    `about` goes into the marker file beside the list of what was written. Raises `UserError` where
    `target` exists and holds anything that an earlier call did not write, and for a full disk, a
    missing permission and the like.
    """
    target = target.absolute()
    refuse_to_overwrite(target)
    temporary = target.with_name(f".{target.name}.incomplete")
    replaced = target.with_name(f".{target.name}.replaced")
    try:
        _remove(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        entries = sorted(entry.name for entry in temporary.iterdir())
        marker = json.dumps({**about, "entries": entries}, indent=2)
        (temporary / MARKER).write_text(marker + "\n", encoding="utf-8")
        if target.exists():
            _remove(replaced)
            target.rename(replaced)
        temporary.rename(target)
        _remove(replaced)
    except BaseException as error:
        _remove_for_good(temporary)
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"{target} cannot be written: {error.strerror or error}. Free space, or mend the "
            "permissions, or name another directory."
        ) from error


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _remove_for_good(directory: Path) -> None:
    """Threads of a writer that failed go on for a while, and their files bring it back."""
    absent = 0
    for _ in range(40):
        absent = 0 if directory.exists() else absent + 1
        if absent == 3:
            return
        _remove(directory)
        time.sleep(0.25)


def read_marker(directory: Path) -> dict[str, Any] | None:
    """What `replace_directory` noted about a directory; None where it did not write it."""
    try:
        marker = json.loads((directory / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and isinstance(marker.get("entries"), list) else None


def refuse_to_overwrite(target: Path) -> None:
    """Raises `UserError` where `target` holds anything that `replace_directory` did not write."""
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
