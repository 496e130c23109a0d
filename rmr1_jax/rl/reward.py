"""What a sampled response is worth: the published reward, or a function of the user's own."""

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int

from rmr1_jax.errors import UserError
from rmr1_jax.judging import Side, reward


@dataclass(frozen=True)
class Sampled:
    """One response to one prompt, as text; special tokens are kept in `response`."""

    id: str
    sample: int
    prompt: str
    response: str
    label: Side
    tokens: int
    truncated: bool
    """The response reached the limit before a stop token."""


RewardFunction = Callable[[Sampled], float]


def published(sampled: Sampled) -> float:
    """+1 for the labelled verdict at the end, else -1, truncated or not (spec §4.3)."""
    return reward(sampled.response, sampled.label)


def load_reward(path: str) -> RewardFunction:
    """The function that `package.module:function` names, or `published` for an empty path.

    The module may lie in the current directory. Raises UserError.
    """
    if not path:
        return published
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise UserError(
            f"reward {path!r} names no function; write package.module:function, where the module "
            "may lie in the current directory"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(
            f"reward {path!r}: {module_name} cannot be imported ({type(error).__name__}: {error}); "
            "give the name of a module that is installed or lies in the current directory"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        problem = "has no" if function is None else "has, but cannot call,"
        raise UserError(
            f"reward {path!r}: {module_name} ({module.__file__}) {problem} {name}; it must be a "
            "function that takes a rmr1_jax.rl.reward.Sampled and returns a number"
        )
    return function


def score(function: RewardFunction, sampled: Sequence[Sampled]) -> Float[np.ndarray, " M"]:
    """The reward of each response.

    Raises UserError, which names the sample, where the function raises or gives no finite number.
    """
    return np.array([_score(function, each) for each in sampled], np.float64)


def score_shared(function: RewardFunction, sampled: Sequence[Sampled]) -> Float[np.ndarray, " M"]:
    """`score`, with the work dealt out over the processes of a run; all get all rewards.

    Where the function fails in one process, all of them raise.
    """
    processes, mine = jax.process_count(), jax.process_index()
    if processes == 1:
        return score(function, sampled)
    each = -(-len(sampled) // processes)
    values, failure = np.full(each, np.nan), None
    try:
        scored = score(function, sampled[mine::processes])
        values[: len(scored)] = scored
    except UserError as error:
        failure = error
    # As bits: JAX would round the numbers to 32.
    words = np.asarray(multihost_utils.process_allgather(values.view(np.uint32)))
    gathered = words.view(np.float64).T.ravel()[: len(sampled)]
    if failure is not None:
        raise failure
    if np.isnan(gathered).any():
        broken = sampled[int(np.flatnonzero(np.isnan(gathered))[0])]
        raise UserError(f"the reward function failed in another process, near prompt {broken.id}")
    return gathered


def _score(function: RewardFunction, sampled: Sampled) -> float:
    name = getattr(function, "__qualname__", repr(function))
    where = f"reward function {name}, sample {sampled.sample} of prompt {sampled.id}"
    try:
        value = function(sampled)
    except Exception as error:
        raise UserError(
            f"{where}: it raised {type(error).__name__}: {error}; "
            "mend the function, then start the run again: it goes on from its last checkpoint"
        ) from error
    if not isinstance(value, (Real, np.bool_)) or not math.isfinite(value):
        raise UserError(
            f"{where}: it returned {value!r}, which is not a finite number; "
            "mend the function, then start the run again: it goes on from its last checkpoint"
        )
    return float(value)


def length_penalty(
    tokens: Int[np.ndarray, " M"], *, longest: int, buffer: int
) -> Float[np.ndarray, " M"]:
    """What is added to the reward of a long response: 0 until `longest - buffer` tokens, then
    falling evenly to -1 at `longest` (soft overlong punishment, arXiv 2503.14476; not published for
    RM-R1). `buffer` is at least 1.
    """
    return np.clip((longest - buffer - np.asarray(tokens)) / buffer, -1.0, 0.0)
