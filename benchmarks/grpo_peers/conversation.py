"""The job of all engines, and the talk between the benchmark and an engine in its own process.

The benchmark writes the job, a JSON object on one line; the engine answers with the versions of its
packages. Then every line "step" is answered by a step's measurements, and the end of the input
ends the engine. Nothing but the standard library is imported: every environment can use this.
"""

import json
import os
import resource
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

TIMED = ("rollout", "reference", "reward")
PHASES = (*TIMED, "update")  # the update is the rest of a step


@dataclass(frozen=True)
class Job:
    """One GRPO step: N prompts, G samples of each, rewards, one update over all of them."""

    model: str  # a Hugging Face directory, with a tokenizer
    prompts: list[list[int]]
    lengths: list[list[int]]  # [prompt][sample]: tokens that are drawn, the end token included
    max_new_tokens: int
    stop_id: int  # drawn as the last token of each response
    banned_ids: list[int]  # never drawn before: all end tokens, and padding
    pad_id: int
    micro_prompts: int  # groups that are taken at a time in reference, forward and backward
    threads: int
    temperature: float = 1.0
    learning_rate: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    kl: float = 0.001
    clip: float = 0.2

    @property
    def group_size(self) -> int:
        return len(self.lengths[0])

    @property
    def rows(self) -> int:
        return len(self.prompts) * self.group_size

    @property
    def new_tokens(self) -> int:
        return sum(map(sum, self.lengths))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(line: str) -> "Job":
        return Job(**json.loads(line))


def reward(response: str) -> float:
    """+1 or -1, by a checksum: cheap, and hardly ever the same for a whole group."""
    return 1.0 if zlib.crc32(response.encode("utf-8", "replace")) % 2 else -1.0


class Measured:
    """Seconds of one step, and of the phases that were timed in it."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.begin()

    def begin(self) -> None:
        self._phases = dict.fromkeys(TIMED, 0.0)
        self._cpu, self._start = time.process_time(), time.perf_counter()

    def count(self, phase: str, seconds: float) -> None:
        self._phases[phase] += seconds

    def timing(
        self, phase: str, function: Callable[..., Any], wait: Callable[[Any], Any] = lambda x: x
    ) -> Callable[..., Any]:
        """`function`, its time counted to a phase; `wait` for a result that comes later."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = wait(function(*args, **kwargs))
            self.count(phase, time.perf_counter() - start)
            return result

        return timed

    def end(self) -> dict[str, Any]:
        """The measurements of the step, whose responses had `lengths`, in the order of the rows."""
        seconds = time.perf_counter() - self._start
        return {
            "seconds": seconds,
            "phases": {**self._phases, "update": seconds - sum(self._phases.values())},
            "lengths": self.lengths,
            "cpu_seconds": time.process_time() - self._cpu,
            "peak_bytes": peak_bytes(),
        }


def peak_bytes() -> int:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the process was forked from, too
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


class Benchmark:
    """What an engine sees of the benchmark."""

    def __init__(self) -> None:
        # Libraries print; only answers may reach the benchmark.
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.job = Job.from_json(sys.stdin.readline())

    def ready(self, *packages: str) -> None:
        self.answer({name: version(name) for name in packages})

    def wants_step(self) -> bool:
        """Waits for the word; False at the end of the input."""
        return sys.stdin.readline().strip() == "step"

    def answer(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self._out, flush=True)
