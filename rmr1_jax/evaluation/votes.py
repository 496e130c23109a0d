"""Majority voting: several samples as one judgement, and what fewer of them would have given."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from rmr1_jax.evaluation.record import NO_VERDICT, Cell, Record, Rule, grade
from rmr1_jax.judging import Side
from rmr1_jax.judging.preference import other_side

Outcome = Literal["right", "wrong", "void"]
# A judgement, whichever of its samples: group, id, index, cell, where the chosen response stood.
Judgement = tuple[str, str, int, Cell | None, Side]


def judgement(record: Record) -> Judgement:
    """What the samples of one judgement share."""
    return (*record.item, record.chosen_position)


def outcome(record: Record) -> Outcome:
    """Whether a sample votes for the chosen response, against it, or not at all.

    A record of others that has nothing but `correct` is a vote too.
    """
    if record.verdict is not None:
        return "right" if record.verdict == record.chosen_position else "wrong"
    if record.trace is None and record.problem is None and record.correct != 0.5:
        return "right" if record.correct else "wrong"
    return "void"


def by_judgement(records: Sequence[Record]) -> dict[Judgement, list[Record]]:
    """The samples of each judgement, in the order of the first ones."""
    found: dict[Judgement, list[Record]] = {}
    for record in records:
        found.setdefault(judgement(record), []).append(record)
    return found


def by_majority(records: Sequence[Record], rule: Rule) -> list[Record]:
    """One record a judgement: what the majority of its samples says, and no verdict on a tie.

    A judgement with one sample stays as it is.
    """
    return [
        samples[0] if len(samples) == 1 else _majority(samples, rule)
        for samples in by_judgement(records).values()
    ]


def _majority(samples: Sequence[Record], rule: Rule) -> Record:
    first = samples[0]
    counts = Counter(outcome(sample) for sample in samples)
    verdict: Side | None = None
    if counts["right"] != counts["wrong"]:
        right = counts["right"] > counts["wrong"]
        verdict = first.chosen_position if right else other_side(first.chosen_position)
    return replace(
        first,
        verdict=verdict,
        problem=first.problem if counts.keys() == {"void"} else None,
        correct=grade(verdict, first.chosen_position, rule),
        trace=None,
        trace_tokens=None,
        seconds=None,
        sample=0,
        confidence=None,
        forced=False,
    )


def expected_credit(samples: Sequence[Record], k: int, rule: Rule) -> float:
    """What a majority of k of these samples is worth on average; of all where there are fewer.

    With one sample there is no choice, and it is worth its own `correct`.
    """
    if len(samples) == 1:
        return samples[0].correct
    counts = Counter(outcome(sample) for sample in samples)
    right, wrong, void = counts["right"], counts["wrong"], counts["void"]
    return expected_majority(right, wrong, void, min(k, len(samples)), NO_VERDICT[rule])


@lru_cache(maxsize=65536)
def expected_majority(right: int, wrong: int, void: int, k: int, tie: float) -> float:
    """The mean credit of the majority over all subsets of k of the samples, exactly.

    1 where more of the subset are right than wrong, `tie` where as many, 0 where fewer. Samples
    without a verdict (void) are drawn but vote for neither. The counts follow a hypergeometric
    distribution. `k` from 1 to the number of samples.
    """
    wins = ties = 0
    for r in range(min(right, k) + 1):
        for w in range(min(wrong, k - r) + 1):
            count = math.comb(right, r) * math.comb(wrong, w) * math.comb(void, k - r - w)
            wins += count if r > w else 0
            ties += count if r == w else 0
    subsets = math.comb(right + wrong + void, k)
    return wins / subsets + tie * (ties / subsets)
