"""What became of every record of a mixture: counted, printed and saved."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from rmr1_jax.data.scan import RowStats, Status
from rmr1_jax.data.sources import RowSource
from rmr1_jax.data.splits import SPLITS, Plan
from rmr1_jax.io.atomic_write import atomic_write
from rmr1_jax.io.progress import ProgressDisplay

STEPS = {
    "bad": Status.BAD,
    "filtered": Status.FILTERED,
    "identical_responses": Status.IDENTICAL,
    "duplicates": Status.DUPLICATE,
    "near_duplicates": Status.NEAR_DUPLICATE,
    "same_question": Status.SAME_QUESTION,
    "shared_words": Status.SHARED_WORDS,
    "too_long": Status.TOO_LONG,
    "not_chosen": Status.NOT_CHOSEN,
    "kept": Status.USABLE,
}
HEADINGS = {
    "identical_responses": "identical responses",
    "near_duplicates": "near duplicates",
    "same_question": "benchmark question",
    "shared_words": "benchmark words",
    "too_long": "too long",
    "not_chosen": "over count",
}


@dataclass(frozen=True)
class Report:
    """Counts of a preparation; `report.json` holds the same.

    sources: per source, and "total": read, then the steps in their order, then kept.
    filters: per source, "field=value" -> records that this filter took out.
    splits: per split: records, chosen_a, chosen_b, unlabelled, and as_given, those whose positions
      stay as they are: rendered (released) prompts, or all with balance=as_given.
    """

    sources: dict[str, dict[str, int]]
    filters: dict[str, dict[str, int]]
    splits: dict[str, dict[str, int]]

    @property
    def rejected(self) -> int:
        """Records in the rejects file."""
        total = self.sources["total"]
        return total["bad"] + total["identical_responses"]

    @property
    def kept(self) -> int:
        return self.sources["total"]["kept"]

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        atomic_write(path, text + "\n")

    @classmethod
    def load(cls, path: Path) -> "Report":
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def show(self, console: Console) -> None:
        """Print the counts as tables; steps that took nothing out are left out."""
        total = self.sources["total"]
        steps = [step for step in ("read", *STEPS) if total[step] or step in ("read", "kept")]
        table = Table(title="From records to the mixture")
        table.add_column("source", no_wrap=True)
        for step in steps:
            table.add_column(HEADINGS.get(step, step), justify="right")
        for label, counts in self.sources.items():
            last = label == list(self.sources)[-2]
            table.add_row(label, *(f"{counts[step]:,}" for step in steps), end_section=last)
        console.print(table)
        for label, filters in self.filters.items():
            for filter, count in filters.items():
                console.print(f"{label}: {count:,} filtered by {filter}", markup=False)
        table = Table(title="Splits")
        table.add_column("split", no_wrap=True)
        for heading in ("records", "chosen is A", "chosen is B", "unlabelled", "position as given"):
            table.add_column(heading, justify="right")
        for name, split in self.splits.items():
            table.add_row(name, *(f"{count:,}" for count in split.values()))
        console.print(table)


def make_report(sources: Sequence[RowSource], facts: RowStats, plan: Plan) -> Report:
    """Count what the plan does with every row."""
    table: dict[str, dict[str, int]] = {}
    filters: dict[str, dict[str, int]] = {}
    for index, source in enumerate(sources):
        rows = facts["source"] == index
        status = np.bincount(plan.status[rows], minlength=len(Status))
        table[source.label] = {"read": int(rows.sum())} | {
            step: int(status[code]) for step, code in STEPS.items()
        }
        filtered = facts["filter"][rows & (plan.status == Status.FILTERED)]
        taken = np.bincount(filtered, minlength=len(source.filters))
        if source.filters:
            filters[source.label] = {
                f"{name}={value}": int(taken[number])
                for number, (name, value) in enumerate(source.filters)
            }
    table["total"] = {
        step: sum(counts[step] for counts in table.values()) for step in ("read", *STEPS)
    }
    return Report(table, filters, _splits(facts, plan))


def _splits(facts: RowStats, plan: Plan) -> dict[str, dict[str, int]]:
    label = np.where(plan.label > 0, plan.label, facts["label"])
    table = {}
    for number, name in enumerate(SPLITS):
        rows = plan.split == number
        none, a, b = np.bincount(label[rows], minlength=3)
        as_given = rows & (plan.label == 0)
        table[name] = {
            "records": int(rows.sum()),
            "chosen_a": int(a),
            "chosen_b": int(b),
            "unlabelled": int(none),
            "as_given": int(as_given.sum()),
        }
    return table


class RowProgress(ProgressDisplay):
    """Rows done so far, on standard error. `total` may be unknown."""

    def __init__(self, title: str, total: int | None, console: Console | None = None) -> None:
        self._title, self._total = title, total
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            description=title,
            total=total,
            console=console,
        )

    def __call__(self, done: int) -> None:
        """`done` rows are done, those of earlier runs included."""
        of = "" if self._total is None else f" of {self._total:,}"
        self._update(done, lambda: f"{self._title}: {done:,}{of} records")
