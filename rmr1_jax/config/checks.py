"""What several configurations check, and the words they choose from."""

import math
from collections.abc import Sequence

from rmr1_jax.errors import UserError

DTYPES = ("float32", "bfloat16")


def at_least(name: str, value: float, least: float) -> None:
    """Refuse a number below `least`, or none at all. Raises UserError."""
    if value < least or not math.isfinite(value):
        raise UserError(f"--{name}={value} must be at least {least}")


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is none of `choices`. Raises UserError."""
    if value not in choices:
        known = ", ".join(choice for choice in choices if choice)
        raise UserError(f"--{name}={value} is unknown; choose one of {known}")
