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

from rmr1_jax.io.progress import ProgressDisplay

# What is shown of a step's numbers, and how. A narrow terminal cuts off the end.
SHOWN = {
    "loss": "loss {:.4f}",
    "verdict_token_accuracy": "verdict token {:.0%}",
    "gradient_norm": "grad {:.2f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.0%}",
    "seconds": "{:.2f} s/step",
}
# Of a step that was rewarded: its loss says little.
SHOWN_OF_REWARDED = {
    "reward": "reward {:+.3f}",
    "accuracy": "right {:.0%}",
    "response_tokens": "{:,.0f} tokens a trace",
    "kl": "KL {:.4f}",
    "tokens_per_second_rollout": "rollout {:,.0f} tokens/s",
    "tokens_per_second_update": "update {:,.0f} tokens/s",
    "seconds": "{:.1f} s/step",
}
PHASE_INTERVAL = 30.0  # seconds


class TrainingProgress(ProgressDisplay):
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
        self._step, self._numbers = done, ""
        super().__init__(
            SpinnerColumn(),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("left"),
            total=steps,
            completed=done,
            console=console or Console(file=sys.stderr, quiet=quiet),
            numbers="compiling",
        )

    def phase(self, text: str) -> None:
        """What the step under way is doing: "rollout 3 of 8 groups". May be called often.

        On a terminal it stands below the latest numbers; elsewhere it is a line where nothing
        else was printed for half a minute.
        """
        if self._bar is not None:
            both = f"{self._numbers}\n{text}" if self._numbers else text
            self._bar.update(self._task, numbers=both)
            return
        now = time.monotonic()
        if now - self._last_line >= PHASE_INTERVAL:
            self._last_line = now
            self.say(f"step {self._step + 1} of {self._steps}: {text}")

    def step_done(self, step: int, numbers: Mapping[str, float | int | None]) -> None:
        """The numbers of a step, and a line of its own about a validation.

        The step may be the one that the run began after, validated as it was.
        """
        if validated := validation_line(numbers):
            self.say(f"step {step}: {validated}")
        if step == self._first:
            return
        rewarded = numbers.get("reward") is not None
        shown = "  ".join(
            form.format(numbers[name])
            for name, form in (SHOWN_OF_REWARDED if rewarded else SHOWN).items()
            if numbers.get(name) is not None
        )
        self._step, self._numbers = step, shown
        rate = (step - self._first) / max(time.monotonic() - self._start, 1e-9)
        left = (self._steps - step) / rate
        self._update(
            step,
            lambda: f"{step} of {self._steps} steps  {shown}  {left:,.0f} s left",
            last=step == self._steps,
            numbers=shown,
        )


def validation_line(numbers: Mapping[str, float | int | None]) -> str:
    """What a validation found, in words; nothing where there was none."""
    loss = numbers.get("validation/loss")
    judged = numbers.get("validation/verdict_accuracy")
    consistent = numbers.get("validation/consistent")
    parts = [] if loss is None else [f"validation loss {loss:.4f}"]
    if judged is not None:
        more = "" if loss is not None or consistent is None else f" (consistent {consistent:.1%})"
        parts.append(f"judged right {judged:.1%}{more}")
    return ", ".join(parts)
