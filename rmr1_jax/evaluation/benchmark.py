"""What a benchmark is: a loader of items, and a table that turns records into scores.

A *pass* judges every item once; judging in both orders makes two. An item's credit in a pass is
what its judgement there is worth, or that of the majority where there are several samples.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from rmr1_jax.data.preference_file import Rejects
from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.record import Item, Record, Rule
from rmr1_jax.evaluation.votes import by_majority
from rmr1_jax.judging import Side


class Loaded(NamedTuple):
    """The items of a source, and what the published benchmark has that the source has not."""

    items: list[Item]
    missing: list[str]


class Table(Protocol):
    """The judgements of one benchmark, ready to be scored over and over.

    A score's name is dotted: "chat", "subsets.hep-go". Only the first dot divides.
    """

    strata: Int[np.ndarray, " prompts"]
    """The stratum of each prompt; a bootstrap draws prompts within strata."""

    def values(self, weights: Float[np.ndarray, " prompts"]) -> dict[str, float]:
        """Every score, 0 to 1, with prompts weighed so. NaN where there is nothing to score."""

    def support(self) -> dict[str, tuple[int, bool]]:
        """For the same names: how many judged items a score rests on (each once, however many
        passes and samples), and whether they are all that the published benchmark has."""

    def details(self) -> dict[str, Any]:
        """What else belongs to the benchmark's part of scores.json."""


class Benchmark(NamedTuple):
    """A benchmark by name. `load(source, rejects)` reads a file, a directory or a name on the hub,
    "" being the published place; `make_table(records, rule)` scores."""

    name: str
    title: str
    load: Callable[[str, Rejects], Loaded]
    make_table: Callable[[Sequence[Record], Rule], Table]


@dataclass(frozen=True)
class Credits:
    """What each item is worth in each pass, NaN where it was not judged there."""

    items: list[Record]
    """The first record of each item, in order of first appearance."""
    credit: Float[np.ndarray, "passes items"]

    @property
    def judged(self) -> Bool[np.ndarray, " items"]:
        """Items with a judgement in some pass."""
        return ~np.isnan(self.credit).all(axis=0)

    @property
    def judged_throughout(self) -> Bool[np.ndarray, " items"]:
        """Items with a judgement in every pass."""
        return ~np.isnan(self.credit).any(axis=0)


def credits(
    records: Sequence[Record],
    rule: Rule = "published",
    identity: Callable[[Record], Hashable] = attrgetter("item"),
) -> Credits:
    """Collect records by item and pass.

    There are two passes, chosen at A and chosen at B, if any item was judged in both orders. One
    sample keeps its own `correct`; of several, the majority's verdict is graded by `rule`.

    Raises UserError where records that differ otherwise are about the same item and pass.
    """
    passes: dict[Hashable, dict[Side, Record]] = {}
    for record in by_majority(records, rule):
        positions = passes.setdefault(identity(record), {})
        earlier = positions.setdefault(record.chosen_position, record)
        if earlier is not record:
            raise UserError(
                f"{record.benchmark}: {record.id} ({record.group}), chosen response "
                f"{record.chosen_position}, is there twice (index {earlier.index} and "
                f"{record.index}): records of two runs are mixed; keep one of them"
            )
    two = any(len(positions) == 2 for positions in passes.values())
    credit = np.full((2 if two else 1, len(passes)), np.nan)
    for column, positions in enumerate(passes.values()):
        for position, record in positions.items():
            credit[1 if two and position == "B" else 0, column] = record.correct
    return Credits([next(iter(positions.values())) for positions in passes.values()], credit)


class Prompts(NamedTuple):
    """Items that answer the same prompt are no independent evidence: they are drawn together."""

    of_item: Int[np.ndarray, " items"]
    strata: Int[np.ndarray, " prompts"]


def prompts_of(
    items: Sequence[Record],
    stratum: Callable[[Record], str],
    otherwise: Callable[[Record], Hashable],
) -> Prompts:
    """The prompt of each item: the fingerprint in its record, or else what `otherwise` says.

    A prompt that occurs in several strata belongs to the first.
    """
    numbers: dict[Hashable, int] = {}
    strata: dict[str, int] = {}
    stratum_of: list[int] = []
    of_item: list[int] = []
    for item in items:
        key = (None, item.prompt) if item.prompt is not None else (otherwise(item),)
        if key not in numbers:
            numbers[key] = len(numbers)
            stratum_of.append(strata.setdefault(stratum(item), len(strata)))
        of_item.append(numbers[key])
    return Prompts(np.array(of_item, dtype=int), np.array(stratum_of, dtype=int))


class GroupSums:
    """Weighted sums of credit by group, made to be called a thousand times.

    Args:
      credit: NaN where there is no judgement.
      prompt: the prompt of each item.
      group: the group of each item, below `groups`.
    """

    def __init__(
        self,
        credit: Float[np.ndarray, "passes items"],
        prompt: Int[np.ndarray, " items"],
        group: Int[np.ndarray, " items"],
        groups: int,
    ) -> None:
        row, item = np.nonzero(~np.isnan(credit))
        self._shape = (len(credit), groups)
        self._bin = row * groups + group[item]
        self._prompt = prompt[item]
        self._credit = credit[row, item]

    def __call__(
        self, weights: Float[np.ndarray, " prompts"]
    ) -> tuple[Float[np.ndarray, "passes groups"], Float[np.ndarray, "passes groups"]]:
        """The sum of weight * credit, and the sum of weight."""
        weight = weights[self._prompt]
        size = self._shape[0] * self._shape[1]
        right = np.bincount(self._bin, weight * self._credit, minlength=size)
        total = np.bincount(self._bin, weight, minlength=size)
        return right.reshape(self._shape), total.reshape(self._shape)


def ratio(right: Float[np.ndarray, "..."], total: Float[np.ndarray, "..."]) -> Any:
    """right / total, NaN where total is 0."""
    return np.divide(right, total, out=np.full(np.shape(right), np.nan), where=total > 0)


def mean_of_present(values: Float[np.ndarray, "..."], axis: int | tuple[int, ...]) -> Any:
    """The mean of what is not NaN, NaN where nothing is."""
    present = ~np.isnan(values)
    return ratio(np.where(present, values, 0.0).sum(axis), present.sum(axis).astype(float))
