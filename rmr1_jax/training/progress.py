"""How far a run has come: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL = 10.0  # seconds

# What is shown of a step's numbers, and how.
SHOWN = {
    "loss": "loss {:.4f}",
    "reward": "reward {:+.3f}",
    "verdict_token_accuracy": "verdict token {:.0%}",
    "gradient_norm": "grad {:.2f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.0%}",
    "seconds": "{:.2f} s/step",
}


class TrainingProgress:
    """Steps, the latest numbers and the time left, on standard error.

    Args:
      steps: of the whole run.
      done: that earlier calls took.
      quiet: show nothing (every process of a run but one).
    """

    def __init__(
        self, *, steps: int, done: int, quiet: bool = False, console: Console | None = None
    ) -> None:
        self._console = console or Console(file=sys.stderr, quiet=quiet)
        self._steps, self._first, self._quiet = steps, done, quiet
        self._start = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=steps, completed=done, numbers="compiling")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """A line of its own, whatever the bar does."""
        if not self._quiet:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def step_done(self, step: int, numbers: Mapping[str, float | int | None]) -> None:
        shown = "  ".join(
            form.format(numbers[name])
            for name, form in SHOWN.items()
            if numbers.get(name) is not None
        )
        judged = numbers.get("validation/verdict_accuracy")
        validated = numbers.get("validation/loss")
        if validated is not None:
            more = "" if judged is None else f", judged right {judged:.1%}"
            self.say(f"step {step}: validation loss {validated:.4f}{more}")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=shown)
            return
        now = time.monotonic()
        if now - self._last_line < PLAIN_INTERVAL and step < self._steps:
            return
        self._last_line = now
        rate = (step - self._first) / max(now - self._start, 1e-9)
        self.say(
            f"{step} of {self._steps} steps  {shown}  {(self._steps - step) / rate:,.0f} s left"
        )
