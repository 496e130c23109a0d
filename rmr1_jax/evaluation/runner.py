"""From items to records: what the judge is asked, in which order, and what is kept of it."""

import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from rmr1_jax.config import SamplingOptions
from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.record import Item, Key, Record, Rule, grade
from rmr1_jax.judging import Preference, Side


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


if TYPE_CHECKING:  # the judge brings jax, which scoring does without
    from rmr1_jax.sampling.judge import Judge, Judgement, Progress


class Task(NamedTuple):
    """An item, and which response the judge sees as A."""

    item: Item
    chosen_position: Side

    @property
    def pair(self) -> Preference:
        """As the judge sees it."""
        return self.item.pair if self.chosen_position == "A" else self.item.pair.swapped()

    @property
    def place(self) -> int:
        """Its place in the random stream, whatever else is judged."""
        return 2 * self.item.index + (self.chosen_position == "B")

    def keys(self, votes: int) -> list[Key]:
        """Those of its records."""
        return [(*self.item.key, self.chosen_position, sample) for sample in range(votes)]


def tasks_of(items: Sequence[Item], positions: Sequence[Sequence[Side]]) -> list[Task]:
    """The tasks in the order of the data set; an item's orders stand together."""
    both = zip(items, positions, strict=True)
    return [Task(item, side) for item, sides in both for side in sides]


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """About `limit` items, evenly spread, in order; those of one list or style matrix together.

    The group and id tell what belongs together: RM-Bench has nine items of each, Best-of-N as many
    as there are losers.
    """
    if limit is None or limit >= len(items):
        return list(items)
    families: dict[tuple[str, str, int | None], list[Item]] = {}
    for item in items:
        alone = item.index if item.cell is None else None
        families.setdefault((item.group, item.id, alone), []).append(item)
    number = max(round(limit * len(families) / len(items)), 1)
    every = list(families.values())
    taken = [every[place * len(every) // number] for place in range(number)]
    return sorted(itertools.chain.from_iterable(taken), key=lambda item: item.index)


def judge_tasks(
    judge: "Judge",
    tasks: Sequence[Task],
    prompt_tokens: Sequence[int],
    options: SamplingOptions,
    *,
    votes: int = 1,
    budget: int | None = None,
    rule: Rule = "published",
    on_progress: "Callable[[Progress], None] | None" = None,
) -> Iterator[list[Record]]:
    """The records of each task, one a vote, as they are finished.

    The shortest prompts come first, so that slots hold prompts of one width and none is read as
    wide as the longest of all.

    Args:
      prompt_tokens: the length of each task's prompt.
    """
    by_length = sorted(range(len(tasks)), key=lambda number: prompt_tokens[number])
    ordered = [tasks[number] for number in by_length]
    before = time.monotonic()
    for position, judgements in judge.judge(
        (task.pair for task in ordered),
        options,
        samples=votes,
        indices=(task.place for task in ordered),
        budget=budget,
        on_progress=on_progress,
    ):
        now = time.monotonic()
        share, before = (now - before) / votes, now
        yield [
            record_of(ordered[position], judgement, sample, share, rule)
            for sample, judgement in enumerate(judgements)
        ]


def record_of(
    task: Task, judgement: "Judgement", sample: int, seconds: float, rule: Rule
) -> Record:
    item = task.item
    confidence = judgement.confidence
    return Record(
        benchmark=item.benchmark,
        id=item.id,
        index=item.index,
        group=item.group,
        cell=item.cell,
        chosen_position=task.chosen_position,
        verdict=judgement.verdict,
        problem=judgement.problem,
        correct=grade(judgement.verdict, task.chosen_position, rule),
        trace=judgement.trace,
        prompt_tokens=judgement.prompt_tokens,
        trace_tokens=judgement.trace_tokens,
        seconds=round(seconds, 6),
        sample=sample,
        confidence=None if confidence is None else round(confidence, 6),
        forced=judgement.forced,
        prompt=item.prompt,
    )
