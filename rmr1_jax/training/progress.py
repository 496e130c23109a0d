"""How far a training run has come."""

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from rmr1_jax.live import LiveProgress

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


class TrainingProgress(LiveProgress):
    """Steps, the latest numbers and the time left, on standard error.

    Args:
      steps: of the whole run.
      done: that earlier calls took.
      quiet: show nothing (every process of a run but one).
    """

    def __init__(
        self, *, steps: int, done: int, quiet: bool = False, console: Console | None = None
    ) -> None:
        self._steps, self._first, self._start = steps, done, time.monotonic()
        super().__init__(
            SpinnerColumn(),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            total=steps,
            completed=done,
            console=console or Console(file=sys.stderr, quiet=quiet),
            numbers="compiling",
        )

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
        rate = (step - self._first) / max(time.monotonic() - self._start, 1e-9)
        left = (self._steps - step) / rate
        self._update(
            step,
            lambda: f"{step} of {self._steps} steps  {shown}  {left:,.0f} s left",
            last=step == self._steps,
            numbers=shown,
        )
