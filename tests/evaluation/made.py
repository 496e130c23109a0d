"""Records as a judge would leave them, and scores of them, for the tests of the benchmarks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmr1_jax.evaluation.benchmark import Table
from rmr1_jax.evaluation.record import Record, grade
from rmr1_jax.judging import Side


def judged(benchmark: str, right: float, **fields: Any) -> Record:
    """A record of a judgement that is right (1), wrong (0), or has no verdict (any other)."""
    position: Side = fields.pop("position", "A")
    other: Side = "B" if position == "A" else "A"
    verdict = position if right == 1 else other if right == 0 else None
    known: dict[str, Any] = {"id": "x", "index": 0, "group": "g", "cell": None} | fields
    return Record(
        benchmark=benchmark,
        chosen_position=position,
        verdict=verdict,
        problem=None if verdict else "none",
        correct=grade(verdict, position),
        **known,
    )


def values(table: Table, weights: Sequence[float] | None = None) -> dict[str, float]:
    """Every prompt weighs 1 where nothing else is said."""
    return table.values(np.ones(len(table.strata)) if weights is None else np.array(weights))


class Rejects:
    """Keeps what a loader rejects: (line, reason)."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []

    def __call__(self, line: int, reason: str, text: str) -> None:
        assert text
        self.found.append((line, reason))
