"""An item: one pair of a benchmark, and its place there."""

import hashlib
import json
from dataclasses import dataclass

from rmr1_jax.judging import Preference

# RM-Bench: (style of the chosen response, style of the rejected one).
# RMB Best-of-N: (the query's id, which of its losers).
Cell = tuple[int, int] | tuple[str, int]
ItemKey = tuple[str, str, int, Cell | None]


@dataclass(frozen=True)
class Item:
    """One pair to be judged.

    `pair` has the chosen response as A; `evaluation.order` says where the judge sees it.
    """

    benchmark: str
    id: str
    index: int
    """Position in the benchmark, from 0, in its own order."""
    group: str
    """Subset, domain or scenario path."""
    cell: Cell | None
    pair: Preference
    draw: int
    """Which number of a fresh stream of random numbers places the pair. RM-Bench draws for each of
    its three files anew, RMB for each of its four parts, since each was a process of its own."""

    @property
    def key(self) -> ItemKey:
        """What no two items of a benchmark share."""
        return (self.group, self.id, self.index, self.cell)

    @property
    def prompt(self) -> str:
        """A fingerprint of the conversation: items that share it are no independent evidence."""
        messages = [(message.role, message.content) for message in self.pair.context]
        return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]
