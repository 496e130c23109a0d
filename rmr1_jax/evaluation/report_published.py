"""A run beside the published rows: tables to sort, and where it stands among them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rmr1_jax.evaluation.published_scores import (
    PUBLISHED,
    REWARDBENCH_ROWS,
    RM_BENCH_CORRECTED_ROWS,
    RM_BENCH_ROWS,
    RMB_ROWS,
)
from rmr1_jax.evaluation.report_scores import Number, as_number, label

KINDS = {
    "rm-r1": "RM-R1",
    "reasoning": "reasoning",
    "generative": "generative",
    "scalar": "scalar",
    "ours": "this run",
}
CORRECTED = "RM-Bench corrected"
MAIN = ("RewardBench", "RM-Bench", "RMB", "Average")


class Row(NamedTuple):
    name: str
    kind: str
    """A key of KINDS."""
    note: str
    numbers: list[Number]

    @property
    def ours(self) -> bool:
        return self.kind == "ours"


class Sheet(NamedTuple):
    title: str
    columns: list[str]
    rows: list[Row]


class Strip(NamedTuple):
    """Where numbers stand on one axis, from `low` to `high` points."""

    title: str
    low: float
    high: float
    ticks: list[float]
    dots: list[tuple[str, str, float]]
    """name, kind, points"""
    ours: list[tuple[str, Number]]
    """What is special about it, if anything, and the number."""

    def place(self, value: float) -> float:
        """In percent of the axis."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 3)


def main_sheet(scores: Mapping[str, Any], name: str) -> Sheet:
    """The paper's Table 1, with the run in it: RM-Bench as published, and corrected."""

    def ours(note: str, way: str, average: str) -> Row:
        paths = (("rewardbench", "overall"), ("rm_bench", way, "total"), ("rmb", "overall"))
        numbers = [_at(scores, path) for path in (*paths, (average,))]
        return Row(name, "ours", note, numbers)

    rows = [
        Row(row.name, row.kind, "", [Number("", value) for value in row[2:]]) for row in PUBLISHED
    ]
    rows.append(ours("", "as_published", "average"))
    if "rm_bench" in scores:
        rows.append(ours(CORRECTED, "corrected", "average_corrected"))
    return Sheet("Overall", list(MAIN), _sorted(rows))


def section_sheets(scores: Mapping[str, Any], name: str) -> dict[str, Sheet]:
    """The tables of the paper's appendix, for the benchmarks that were judged."""
    found: dict[str, Sheet] = {}
    tables = {"rewardbench": REWARDBENCH_ROWS, "rm_bench": RM_BENCH_ROWS, "rmb": RMB_ROWS}
    kinds: dict[str, str] = {row.name: row.kind for row in PUBLISHED}
    for benchmark, table in tables.items():
        part = scores.get(benchmark)
        if part is None:
            continue
        columns = list(next(iter(table.values())))

        def rows(table: Mapping[str, Mapping[str, float]], note: str) -> list[Row]:
            return [
                Row(
                    model, kinds.get(model, ""), note, [Number("", value) for value in row.values()]
                )
                for model, row in table.items()
            ]

        def ours(note: str, part: Mapping[str, Any], columns: Sequence[str] = columns) -> Row:
            return Row(name, "ours", note, [_at(part, (column,)) for column in columns])

        if benchmark == "rm_bench":
            all_rows = [
                *rows(table, ""),
                *rows(RM_BENCH_CORRECTED_ROWS, "corrected"),
                ours("", part["as_published"]),
                ours("corrected", part["corrected"]),
            ]
        else:
            all_rows = [*rows(table, ""), ours("", part)]
        found[benchmark] = Sheet("", [label(column) for column in columns], _sorted(all_rows))
    return found


def strips(sheet: Sheet) -> list[Strip]:
    """One a column: a dot a published row. All have one axis, so that they can be compared."""
    values = [number.value for row in sheet.rows for number in row.numbers]
    low = min((value for value in values if value is not None), default=0.0)
    low = max(0.0, math.floor(low / 10) * 10)
    step = 10 if low >= 40 else 20
    ticks = [float(tick) for tick in range(math.ceil(low / step) * step, 101, step)]
    found: list[Strip] = []
    for place, column in enumerate(sheet.columns):
        dots: list[tuple[str, str, float]] = []
        ours: list[tuple[str, Number]] = []
        for row in sheet.rows:
            number = row.numbers[place]
            if number.value is None:
                continue
            if not row.ours:
                dots.append((row.name, row.kind, number.value))
            elif not row.note or column in ("RM-Bench", "Average"):
                ours.append((row.note, number))
        ours.sort(key=lambda each: each[0])  # as published, then corrected
        found.append(Strip(column, low, 100.0, ticks, dots, ours))
    return found


def _at(scores: Mapping[str, Any], path: Sequence[str]) -> Number:
    found: Any = scores
    for step in path:
        found = found.get(step) or {}
    return as_number("", found) if found else Number("", None)


def _sorted(rows: Sequence[Row]) -> list[Row]:
    """Best first by the last column; a row without it stands where its other numbers' mean does."""

    def worth(row: Row) -> float:
        values = [number.value for number in row.numbers if number.value is not None]
        last = row.numbers[-1].value
        return last if last is not None else sum(values) / len(values) if values else -1.0

    return sorted(rows, key=worth, reverse=True)
