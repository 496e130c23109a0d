"""One verdict out of several: a majority of samples, or both orders of a pair."""

from collections.abc import Sequence
from dataclasses import dataclass

from rmr1_jax.judging.preference import Side, other_side


@dataclass(frozen=True)
class Vote:
    """`verdict` is None on a tie. `share` is the winner's part of all votes, void ones included."""

    verdict: Side | None
    counts: dict[Side | None, int]
    share: float


@dataclass(frozen=True)
class Orders:
    """`verdict` is None unless both orders chose the same response."""

    verdict: Side | None
    consistent: bool


def unswap(verdict: Side | None) -> Side | None:
    """A verdict on `preference.swapped()`, in terms of `preference`."""
    return None if verdict is None else other_side(verdict)


def majority(verdicts: Sequence[Side | None]) -> Vote:
    """The verdict that more samples gave. Samples without a verdict (None) count for neither."""
    counts: dict[Side | None, int] = {"A": 0, "B": 0, None: 0}
    for verdict in verdicts:
        counts[verdict] += 1
    if counts["A"] == counts["B"]:
        return Vote(None, counts, 0.0)
    winner: Side = "A" if counts["A"] > counts["B"] else "B"
    return Vote(winner, counts, counts[winner] / len(verdicts))


def combine_orders(first: Side | None, second_swapped: Side | None) -> Orders:
    """`first` judged the pair as given, `second_swapped` judged `preference.swapped()`."""
    consistent = first is not None and first == unswap(second_swapped)
    return Orders(first if consistent else None, consistent)
