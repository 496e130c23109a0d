"""Preferences of the toy task, in any number, from a seed."""

import random
from collections.abc import Iterator

from rmr1_jax.judging import Message, Preference
from rmr1_jax.toy_task.problems import KINDS, Problem


def toy_preferences(count: int, seed: int) -> Iterator[Preference]:
    """`count` labelled preferences about different problems, of four kinds.

    Kinds are drawn, not taken in turn: whatever puts the chosen response at A and B in turn would
    otherwise give the label away by the kind. Where a kind is used up, another takes its place.
    The same seed gives the same sequence, whatever the count. No problem comes twice under one
    seed; other seeds may draw it again. Where the right response stands is drawn by itself, so it
    says nothing about the text.
    """
    rng = random.Random(f"rmr1_jax toy task {seed}")
    seen: set[Problem] = set()
    for number in range(count):
        problem = _unseen(rng.choice(KINDS), seen, rng)
        seen.add(problem)
        right, wrong = problem.responses(rng)
        preference = Preference(
            id=f"self-made-{seed}-{number}",
            context=(Message("user", problem.question(rng)),),
            response_a=right,
            response_b=wrong,
            label="A",
        )
        yield preference if rng.random() < 0.5 else preference.swapped()


def _unseen(kind: type[Problem], seen: set[Problem], rng: random.Random) -> Problem:
    """A new problem: of this kind, if a few draws find one there."""
    for _ in range(50):
        problem = kind.draw(rng)
        if problem not in seen:
            return problem
    return _unseen(rng.choice(KINDS), seen, rng)
