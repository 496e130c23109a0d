"""What several configurations check, and the words they choose from."""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rmr1_jax.errors import UserError

# Where the toy task's pairs, traces and runs lie; stages make them where they are absent.
PAIRS, TRACES = "data/toy_task", "data/toy_task_traces"
SFT, GRPO = "runs/sft_toy_task", "runs/grpo_toy_task"


def checkpoint_exists(name: str, path: str) -> None:
    """Refuse a checkpoint that is not there, and will not be made. Raises UserError."""
    if path not in (SFT, GRPO) and not Path(path).exists():
        raise UserError(
            f"--{name}={path}: there is no such directory or file; "
            "name a checkpoint on this machine"
        )


def at_least(name: str, value: float, least: float) -> None:
    """Refuse a number below `least`, or none at all. Raises UserError."""
    if value < least or not math.isfinite(value):
        raise UserError(f"--{name}={value} must be at least {least}")


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is none of `choices`. Raises UserError."""
    if value not in choices:
        known = ", ".join(choice for choice in choices if choice)
        guess = nearest(value, choices)
        choose = f"{guess} (there are {known})" if guess else f"; choose one of {known}"
        raise UserError(f"--{name}={value} is unknown{choose}")


def check_choices(config: Any, section: str = "") -> None:
    """Refuse a value that is none of those its field may have, in any section. Raises UserError."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal:
            one_of(f"{section}{name}", value, get_args(kind))
        elif is_dataclass(value):
            check_choices(value, f"{section}{name}.")


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """'; did you mean X?' for the known name that is closest in spelling, whose words begin with
    the letters of `name` (lr, learning_rate), or that has these in order (hf, huggingface)."""
    known = [each for each in known if each]
    initials = {"".join(re.findall(r"(?:^|_)([a-z])", each.split(".")[-1])): each for each in known}
    in_order = re.compile(".*".join(map(re.escape, name)) or "$")
    found = difflib.get_close_matches(name, known, n=1) or [
        *([initials[name]] if name in initials else []),
        *(each for each in known if len(name) > 1 and in_order.match(each)),
    ]
    return f"; did you mean {prefix}{found[0]}?" if found else ""
