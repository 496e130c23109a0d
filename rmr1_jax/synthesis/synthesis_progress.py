"""How far a distillation has come."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from rmr1_jax.io.progress import ProgressDisplay
from rmr1_jax.synthesis.reply_cache import Spend


class SynthesisProgress(ProgressDisplay):
    """One pass: pairs answered, kept and not kept, and what it has cost, on standard error.

    Args:
      number: the pass.
      total: pairs that this run asks in it.
    """

    def __init__(
        self, *, number: int, teacher: str, total: int, console: Console | None = None
    ) -> None:
        self._title, self._total = f"pass {number}, {teacher}", total
        self._kept = self._not_kept = self._failed = 0
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[counts]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("left"),
            description=self._title,
            total=total,
            console=console,
            counts="",
        )

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
        self._update(
            done, lambda: f"{self._title}: {done} of {self._total} pairs, {counts}", counts=counts
        )
