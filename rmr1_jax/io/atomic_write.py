"""Files that are whole or absent, whatever interrupts their writing."""

import contextlib
import os
from pathlib import Path

from rmr1_jax.errors import UserError


def atomic_write(path: Path, text: str) -> Path:
    """Write a text file beside its place, then move it there. Raises UserError."""
    # Another process may be writing the same file.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            # No surrogates get here from data or tokenizers; "replace" keeps it that way.
            file.write(text.encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "free space or choose another place, and run the same command again"
        ) from error
    return path
