"""Time to the first verdict of a new process, with and without compiled programs kept on disk."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rmr1_jax.errors import UserError
from rmr1_jax.main import CACHE_VARIABLE

PAIR = {
    "question": "Which number is larger, 9.9 or 9.11?",
    "response_a": "9.9 is larger, because 0.9 is more than 0.11.",
    "response_b": "9.11 is larger, because 11 is more than 9.",
}


def measure_startup(
    model: Path, *, repeats: int, max_new_tokens: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds from the start of `--stage=judge` on one pair to its end, cold and warm in turn.

    Cold finds an empty cache directory, warm the one that the cold start before it has filled. A
    first start, not counted, brings the files of the model and of the libraries into memory.
    """
    command = [sys.executable, "-m", "rmr1_jax.main", "--stage=judge", f"--model={model}"]
    command += [f"--{name}={value}" for name, value in PAIR.items()]
    command += [f"--max_new_tokens={max_new_tokens}"]
    with tempfile.TemporaryDirectory() as unused:
        _seconds_of(command, unused)
    cold, warm = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(_seconds_of(command, cache))
            warm.append(_seconds_of(command, cache))
        say(f"start: cold {cold[-1]:.1f} s, warm {warm[-1]:.1f} s")
    medians = statistics.median(cold), statistics.median(warm)
    return {
        "max_new_tokens": max_new_tokens,
        "cold_seconds": cold,
        "warm_seconds": warm,
        "cold": medians[0],
        "warm": medians[1],
        "warm_over_cold": medians[1] / medians[0],
    }


def _seconds_of(command: list[str], cache: str) -> float:
    environment = os.environ | {CACHE_VARIABLE: cache, "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"the judge of --startup ended with status {done.returncode}: {last}")
    return seconds
