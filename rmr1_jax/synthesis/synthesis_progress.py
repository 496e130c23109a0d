"""How far a distillation has come, and its report as a table."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from rmr1_jax.io.progress import ProgressDisplay
from rmr1_jax.synthesis.reply_cache import Spend
from rmr1_jax.synthesis.two_pass import Report


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


def report_table(report: Report) -> Table:
    """Pairs first, then what each teacher was asked and what it cost."""
    table = Table(title="Traces", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("pairs", report.pairs),
        ("accepted in pass 1", report.accepted[1]),
        *_indented("pass 1", report.rejected_in_pass_1),
        ("accepted in pass 2", report.accepted[2]),
        *_indented("refused", report.rejected),
        *_indented("no reply", report.failed),
        ("still to be asked", report.open),
    ):
        table.add_row(name, f"{value:,}")
    for number, spend in sorted(report.spend.items()):
        if not spend.requests:
            continue
        table.add_section()
        table.add_row(f"teacher {number}", report.teachers[number])
        for name, value in vars(spend).items():
            if value or name in ("requests", "replies"):
                table.add_row(f"  {name.replace('_', ' ')}", f"{value:,}")
    return table


def _indented(what: str, counts: dict[str, int]) -> list[tuple[str, int]]:
    return [
        (f"  {what}: {reason}", count)
        for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
