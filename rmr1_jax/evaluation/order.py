"""Which of the two responses the judge sees as A."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.item import Item
from rmr1_jax.judging import Side


@dataclass(frozen=True)
class Order:
    """`published`: the stream of RM-R1's runs. `both`: each pair twice. `seed`: another stream."""

    kind: Literal["published", "both", "seed"]
    seed: int = 0

    def __str__(self) -> str:
        return f"seed={self.seed}" if self.kind == "seed" else self.kind


def parse_order(text: str) -> Order:
    """`published`, `both` or `seed=N`. Raises UserError."""
    if text == "published":
        return Order("published")
    if text == "both":
        return Order("both")
    found = re.fullmatch(r"seed=(\d{1,10})", text)
    if found is None or int(found[1]) >= 2**32:
        raise UserError(
            f"--order={text} is unknown; it must be published, both, or seed=N, "
            f"N from 0 to {2**32 - 1}"
        )
    return Order("seed", int(found[1]))


def positions(items: Sequence[Item], order: Order) -> list[tuple[Side, ...]]:
    """Where the chosen response of each item stands: one place, or both for `both`.

    RM-R1's evaluation puts the chosen response at B where `np.random.rand() > 0.5`, row after row.
    It sets no seed, but vLLM's default had seeded NumPy with 0: the published logs show exactly
    that stream. `Item.draw` says which number of it a pair gets: a row that cannot be used shifts
    no other. A file that holds a part of a benchmark is numbered by itself, so that its pairs stand
    elsewhere than in the published runs.
    """
    if order.kind == "both":
        return [("A", "B")] * len(items)
    last = max((item.draw for item in items), default=0)
    stream = np.random.RandomState(order.seed).rand(last + 1)
    return [("B",) if stream[item.draw] > 0.5 else ("A",) for item in items]
