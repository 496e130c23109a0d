"""Several verdicts become one, or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.judging import Orders, Side, combine_orders, majority, unswap

verdicts = st.sampled_from(["A", "B", None])


@pytest.mark.parametrize(
    ("votes", "verdict", "share"),
    [
        ("AAB", "A", 2 / 3),
        ("B", "B", 1.0),
        ("ABAB", None, 0.0),
        ("--B", "B", 1 / 3),
        ("---", None, 0.0),
        ("", None, 0.0),
    ],
)
def test_majority(votes: str, verdict: Side | None, share: float) -> None:
    vote = majority([None if v == "-" else "A" if v == "A" else "B" for v in votes])
    assert (vote.verdict, vote.share) == (verdict, share)
    assert vote.counts == {"A": votes.count("A"), "B": votes.count("B"), None: votes.count("-")}


@given(st.lists(verdicts))
def test_majority_follows_a_swap(votes: list[Side | None]) -> None:
    swapped = majority([unswap(vote) for vote in votes])
    assert swapped.verdict == unswap(majority(votes).verdict)
    assert swapped.share == majority(votes).share


@given(verdicts)
def test_unswapping_twice_gives_the_same_verdict(verdict: Side | None) -> None:
    assert unswap(unswap(verdict)) == verdict


@pytest.mark.parametrize(
    ("first", "second_swapped", "expected"),
    [
        ("A", "B", Orders("A", True)),
        ("B", "A", Orders("B", True)),
        ("A", "A", Orders(None, False)),
        ("B", "B", Orders(None, False)),
        ("A", None, Orders(None, False)),
        (None, "A", Orders(None, False)),
        (None, None, Orders(None, False)),
    ],
)
def test_orders_agree_when_both_choose_the_same_response(
    first: Side | None, second_swapped: Side | None, expected: Orders
) -> None:
    assert combine_orders(first, second_swapped) == expected
