"""Files that are whole or absent, whatever interrupts their writing."""

import os
from pathlib import Path

from rmr1_jax.errors import UserError


def write_whole(path: Path, text: str) -> Path:
    """Write a text file beside its place, then move it there. Raises UserError."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            # No surrogates get here from data or tokenizers; "replace" keeps it that way.
            file.write(text.encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "free space or choose another place, and run the same command again"
        ) from error
    return path
