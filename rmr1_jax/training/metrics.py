"""Where a run's numbers go: JSON lines, TensorBoard, wandb where it is installed, the terminal."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from rmr1_jax.io.atomic_write import atomic_file
from rmr1_jax.io.progress import ProgressDisplay
from rmr1_jax.io.run_directory import METRICS

Numbers = dict[str, float | int | None]

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


class MetricsLog:
    """Appends one record a step. Only one process of a run may have one.

    Args:
      workdir: the run's.
      after: the step that the run goes on after; records of later steps are an interrupted run's,
        and will be made again.
      config: shown by wandb, which is used where it is installed and WANDB_MODE or WANDB_API_KEY
        says so.
    """

    def __init__(self, workdir: Path, *, after: int, config: Mapping[str, Any]) -> None:
        self.path = workdir / METRICS
        keep_until(self.path, after)
        self._file = self.path.open("a", encoding="utf-8")
        from tensorboardX import SummaryWriter  # here: it takes a while to import

        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=after + 1)
        self._wandb: Any = None
        if find_spec("wandb") and ("WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ):
            import wandb

            self._wandb = wandb.init(
                dir=str(workdir), name=workdir.name, id=_run_id(workdir), resume="allow"
            )
            self._wandb.config.update(dict(config), allow_val_change=True)

    def write(self, step: int, numbers: Mapping[str, float | int | None]) -> None:
        """`numbers` of a step; those that are None or not finite stay out of the charts."""
        record = {"step": step} | {name: _plain(value) for name, value in numbers.items()}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # or a mounted bucket has it when the run ends
        charted = {
            name: float(value)
            for name, value in numbers.items()
            if value is not None and math.isfinite(value)
        }
        for name, value in charted.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(charted, step=step)

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The records of a run, in order; an interrupted last line is left out."""
    path = Path(workdir) / METRICS
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`, and half a line that a kill left."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
    if len(kept) != len(lines):
        with atomic_file(path) as file:
            file.writelines(kept)


def _plain(value: float | int | None) -> float | int | str | None:
    # JSON has no NaN and no infinity; a step that was skipped for one should still say so.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _run_id(workdir: Path) -> str:
    """A name that stays the same when the run goes on."""
    file = workdir / "wandb_id"
    if not file.exists():
        file.write_text(os.urandom(4).hex())
    return file.read_text()


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
