"""Traces about the toy task in chain-of-rubrics form, right or with a plausible slip.

A trace takes steps small enough for a tiny model: it solves column by column or item by item,
quotes what each response gives, and says whether that is what was asked for.
"""

import random

from rmr1_jax.errors import UserError
from rmr1_jax.judging import Preference, Side
from rmr1_jax.judging.preference import other_side
from rmr1_jax.toy_task.problems import (
    Arithmetic,
    Counting,
    Format,
    Problem,
    read_problem,
)

MARKS = {True: " fits", False: " fails"}
GLANCE = "at a glance"
# What traces repeat, cut so that the verdict's letter stands alone.
PHRASES = (
    "<type>Reasoning</type>\n<solution>",
    "<type>Chat</type>\n<rubric>80%",
    "in order",
    GLANCE,
    " = ",
    "</solution>\n<eval>",
    ", 20%",
    "<justify>the client asks for a form</justify></rubric>\n<eval>",
    *(
        f"{open}{kind}_{side}>"
        for kind in ("quote", "summary")
        for side in "AB"
        for open in (" <", "<", "</")
    ),
    # Signs go with their digits, so that a column is three tokens in a row.
    *(f"{sign}{digit}" for sign in "+-=" for digit in range(10)),
    *(f" {number}" for number in range(1, 7)),
    *MARKS.values(),
    "</eval>\n<answer>[[",
    "]]</answer>",
)


def scripted_trace(preference: Preference, *, right: bool, seed: int, hasty: bool = False) -> str:
    """A trace about a preference of the toy task.

    Args:
      preference: its label is not looked at: the question is solved.
      right: whether the verdict is right; if not, a slip on the way leads to the wrong one.
      seed: of the slip.
      hasty: a sum or difference is decided at a glance: no solution, no quotes.

    Raises UserError where the question is none of the task's, or not exactly one response is right.
    """
    problem, better = judge(preference)
    if not right:
        better = other_side(better)
    if hasty and isinstance(problem, Arithmetic):
        return (
            f"<type>{problem.type}</type>\n<solution>{GLANCE}</solution>\n"
            f"<eval>A{MARKS[better == 'A']} B{MARKS[better == 'B']}</eval>\n"
            f"<answer>[[{better}]]</answer>"
        )
    rng = random.Random(f"{preference.id} {seed}")
    sides: tuple[tuple[Side, str], ...] = (
        ("A", preference.response_a),
        ("B", preference.response_b),
    )
    believed = preference.response_a if better == "A" else preference.response_b
    try:
        why = reasons(problem, believed, rng)
        evaluation = " ".join(
            f"{evidence(problem, side, response, believed)}{MARKS[side == better]}"
            for side, response in sides
        )
    except (ValueError, IndexError) as error:  # no number, or no word, where one belongs
        raise UserError(
            f"preference {preference.id!r}: the response {believed!r} is none that the toy "
            "task gives; name another teacher than the programmed one"
        ) from error
    return (
        f"<type>{problem.type}</type>\n{why}\n"
        f"<eval>{evaluation}</eval>\n<answer>[[{better}]]</answer>"
    )


def judge(preference: Preference) -> tuple[Problem, Side]:
    """The problem that a preference is about, and which response is right. Raises UserError."""
    question = preference.context[-1].content
    problem = read_problem(question)
    if problem is None or len(preference.context) != 1:
        raise UserError(
            f"preference {preference.id!r}: the programmed teacher knows the toy task only; "
            "name another teacher for other questions"
        )
    right_a, right_b = (
        problem.is_right(response) for response in (preference.response_a, preference.response_b)
    )
    if right_a == right_b:
        raise UserError(
            f"preference {preference.id!r}: {'both' if right_a else 'none'} of the responses to "
            f"{question!r} {'are' if right_a else 'is'} right; exactly one must be"
        )
    return problem, "A" if right_a else "B"


def reasons(problem: Problem, believed: str, rng: random.Random) -> str:
    """The solution, or the rubric, of one who believes that this response is right."""
    if isinstance(problem, Format):
        return (
            f"<rubric>80% {problem.demand}, 20% {problem.words[0]} and {problem.words[1]}"
            "<justify>the client asks for a form</justify></rubric>"
        )
    answer = believed.rpartition(" ")[2]
    if isinstance(problem, Arithmetic):
        steps = _column_by_column(problem, answer)
    elif isinstance(problem, Counting):
        steps = _item_by_item(problem, int(answer), rng)
    else:
        steps = "in order"
    return f"<solution>{steps} = {answer}</solution>"


def evidence(problem: Problem, side: Side, response: str, believed: str) -> str:
    """What a response gives, in a quote or, where words are counted, in a summary.

    An answer is quoted up to where it first differs from the one that is believed: so each of its
    characters is compared by itself, and a quote that goes to the end fits.
    """
    if not isinstance(problem, Format):
        given, right = (text.rpartition(" ")[2] for text in (response, believed))
        differs = next(
            (i for i, (x, y) in enumerate(zip(given, right, strict=False)) if x != y), len(given)
        )
        return f"<quote_{side}>{given[: differs + 1]}</quote_{side}>"
    words = response[:-1].split()
    if problem.count is not None:
        counted = " ".join(f"{word} {number}" for number, word in enumerate(words, start=1))
        return f"<summary_{side}>{counted}</summary_{side}>"
    if problem.end is not None:
        return f"<quote_{side}>{response[-1]}</quote_{side}>"
    return f"<quote_{side}>{words[0]}</quote_{side}>"


def _column_by_column(problem: Arithmetic, answer: str) -> str:
    """Each column with its result, which is the digit of the answer that is believed."""
    return ",".join(
        f"{a}{problem.sign}{b}={result}"
        for (a, b, _), result in zip(problem.columns(), answer, strict=True)
    )


def _item_by_item(problem: Counting, answer: int, rng: random.Random) -> str:
    """Each item with the count so far; a slip counts items that are others, or overlooks some."""
    counted = [problem.counts(item) for item in problem.items]
    excess = answer - sum(counted)
    slips = [place for place, counts in enumerate(counted) if counts == (excess < 0)]
    for place in rng.sample(slips, abs(excess)):
        counted[place] = not counted[place]
    return "".join(f"{item}{sum(counted[: place + 1])}" for place, item in enumerate(problem.items))
