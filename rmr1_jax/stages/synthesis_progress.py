"""How far a distillation has come: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
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

from rmr1_jax.data.replies import Spend
from rmr1_jax.stages.progress import PLAIN_INTERVAL


class SynthesisProgress:
    """One pass: pairs answered, kept and not kept, and what it has cost, on standard error.

    Args:
      number: the pass.
      total: pairs that this run asks in it.
    """

    def __init__(
        self, *, number: int, teacher: str, total: int, console: Console | None = None
    ) -> None:
        self._console = console or Console(file=sys.stderr)
        self._title, self._total = f"pass {number}, {teacher}", total
        self._kept = self._not_kept = self._failed = 0
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[counts]}", markup=False),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
                speed_estimate_period=600,
            )
            self._task = self._bar.add_task(self._title, total=total, counts="")

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

    def answered(self, *, kept: bool, failed: bool, spend: Spend) -> None:
        """One more pair has its answer; `spend` is that of the pass over all runs."""
        self._failed += failed
        self._kept += kept
        self._not_kept += not kept and not failed
        done = self._kept + self._not_kept + self._failed
        counts = (
            f"{self._kept} accepted, {self._not_kept} rejected"
            + (f", {self._failed} failed" if self._failed else "")
            + f"; {spend.requests:,} requests, {spend.tokens:,} tokens"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=done, counts=counts)
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_INTERVAL:
            self._last_line = now
            print(
                f"{self._title}: {done} of {self._total} pairs, {counts}",
                file=self._console.file,
                flush=True,
            )
