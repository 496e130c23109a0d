"""What one pair's judgements become in the output, and how records are counted."""

from typing import Any

from rmr1_jax.evaluation.judgement_record import Tally, judgement_record
from rmr1_jax.judging import Message, Preference

PAIR = Preference("p", (Message("user", "Q?"),), "a", "b", label="A")


class Sample:
    """A judgement with a verdict ("A", "B") or a problem."""

    type = rubric = solution = evaluation = finish_reason = None
    prompt_tokens = trace_tokens = 1

    def __init__(self, outcome: str, logprob: float | None = None) -> None:
        self.verdict = outcome if outcome in "AB" else None
        self.problem = None if outcome in "AB" else outcome
        self.trace, self.logprob = f"trace {outcome}", logprob


def record(first: str, second: str | None = None) -> dict[str, Any]:
    """The record of samples such as "A B none", and of the swapped order, if any."""
    orders: list[Any] = [
        [Sample(outcome) for outcome in order.split()] for order in (first, second) if order
    ]
    return judgement_record(PAIR, *orders)


def test_a_problem_is_the_trace_s_own() -> None:
    assert record("truncated")["verdict"] is None
    assert record("truncated")["problem"] == "truncated"
    assert record("truncated")["correct"] is False


def test_a_majority_outvotes_void_samples() -> None:
    shown = record("none B both")
    assert (shown["verdict"], shown["problem"], shown["trace"]) == ("B", None, "trace B")
    assert shown["votes"] == {"A": 0, "B": 1, "none": 2}


def test_a_tie_is_no_verdict_and_no_problem() -> None:
    shown = record("none A B")
    assert (shown["verdict"], shown["problem"]) == (None, None)
    assert shown["votes"] == {"A": 1, "B": 1, "none": 1}


def test_votes_that_are_all_void_have_the_first_problem() -> None:
    assert record("both none")["problem"] == "both"


def test_the_swapped_order_is_told_in_terms_of_the_pair_as_given() -> None:
    shown = record("A A B", "B A B")
    assert (shown["verdict"], shown["swapped_verdict"], shown["consistent"]) == ("A", "A", True)
    assert shown["swapped_votes"] == {"A": 2, "B": 1, "none": 0}
    assert shown["correct"] is True


def test_a_problem_of_the_swapped_order_explains_the_missing_verdict() -> None:
    shown = record("A", "truncated")
    assert (shown["verdict"], shown["problem"]) == (None, "truncated")
    assert (shown["swapped_verdict"], shown["consistent"]) == (None, False)
    assert shown["swapped_trace"] == "trace truncated"


def test_a_log_probability_that_json_cannot_hold_is_null() -> None:
    samples: list[Any] = [Sample("A", logprob=float("nan"))]
    assert judgement_record(PAIR, samples)["logprob"] is None


def test_a_tally_counts_every_record_once() -> None:
    tally = Tally()
    for shown in [record("A"), record("B"), record("none"), record("A B"), record("A", "B")]:
        tally.add(shown)
    assert str(tally) == (
        "5 pairs: A 2, B 1, none 1, undecided 1; accuracy 40.0 % (2 of 5 labelled); "
        "same verdict in both orders 1 of 1"
    )
