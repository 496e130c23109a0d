"""Majorities of samples, and what fewer samples would have given."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmr1_jax.evaluation.record import Record, Rule, grade
from rmr1_jax.evaluation.votes import (
    by_judgement,
    by_majority,
    expected_credit,
    expected_majority,
    outcome,
)
from rmr1_jax.judging import Side, majority

RIGHT, WRONG, VOID = 1, -1, 0


def sample(verdict: Side | None, number: int = 0, *, name: str = "x", at: Side = "A") -> Record:
    return Record(
        benchmark="preferences",
        id=name,
        index=0,
        group="chat",
        cell=None,
        chosen_position=at,
        verdict=verdict,
        problem=None if verdict else "none",
        correct=grade(verdict, at),
        sample=number,
    )


class TestExpectedMajority:
    @settings(max_examples=60)
    @given(
        st.lists(st.sampled_from([RIGHT, WRONG, VOID]), min_size=1, max_size=8),
        st.data(),
        st.sampled_from([0.0, 0.5]),
    )
    def test_is_the_mean_over_all_subsets(
        self, samples: list[int], data: st.DataObject, tie: float
    ) -> None:
        k = data.draw(st.integers(1, len(samples)))
        credit = {1: 1.0, 0: tie, -1: 0.0}
        each = [credit[(sum(s) > 0) - (sum(s) < 0)] for s in combinations(samples, k)]
        counts = (samples.count(RIGHT), samples.count(WRONG), samples.count(VOID))
        assert expected_majority(*counts, k, tie) == pytest.approx(sum(each) / len(each))

    def test_of_one_sample_is_the_share_that_is_right(self) -> None:
        assert expected_majority(3, 1, 1, 1, 0.0) == pytest.approx(0.6)

    def test_of_all_samples_is_their_majority(self) -> None:
        assert expected_majority(3, 2, 5, 10, 0.5) == 1.0
        assert expected_majority(2, 3, 5, 10, 0.5) == 0.0
        assert expected_majority(2, 2, 1, 5, 0.5) == 0.5

    def test_many_samples_are_exact_too(self) -> None:
        assert expected_majority(40, 24, 0, 63, 0.0) == 1.0


class TestMajority:
    def test_is_the_one_of_judging(self) -> None:
        verdicts: list[Side | None] = ["B", None, "A", "B"]
        records = [sample(verdict, i) for i, verdict in enumerate(verdicts)]
        (found,) = by_majority(records, "published")
        assert found.verdict == majority(verdicts).verdict == "B"
        assert (found.correct, found.problem, found.sample) == (0.0, None, 0)

    @pytest.mark.parametrize(("rule", "worth"), [("published", 0.0), ("rewardbench", 0.5)])
    def test_a_tie_is_no_verdict(self, rule: Rule, worth: float) -> None:
        (found,) = by_majority([sample("A", 0), sample("B", 1)], rule)
        assert (found.verdict, found.correct) == (None, worth)

    def test_a_single_sample_stays_as_it_is(self) -> None:
        record = sample("A")
        assert by_majority([record], "published") == [record]

    def test_orders_of_an_item_are_judgements_of_their_own(self) -> None:
        records = [sample("A", i, at=side) for i in range(3) for side in ("A", "B")]
        assert [each.correct for each in by_majority(records, "published")] == [1.0, 0.0]
        assert [len(each) for each in by_judgement(records).values()] == [3, 3]

    def test_records_that_have_nothing_but_correct_vote(self) -> None:
        bare = replace(sample(None), problem=None)
        votes = [replace(bare, correct=c, sample=i) for i, c in enumerate((1.0, 1.0, 0.0))]
        assert [outcome(each) for each in votes] == ["right", "right", "wrong"]
        (found,) = by_majority(votes, "published")
        assert (found.verdict, found.correct) == ("A", 1.0)


class TestExpectedCredit:
    def test_of_all_is_what_the_majority_is_worth(self) -> None:
        verdicts: list[Side | None] = ["A", "A", "B", None]
        records = [sample(each, i) for i, each in enumerate(verdicts)]
        (found,) = by_majority(records, "published")
        assert expected_credit(records, 4, "published") == found.correct

    def test_an_item_with_fewer_samples_gives_all_it_has(self) -> None:
        records = [sample("A", 0), sample("B", 1)]
        assert expected_credit(records, 5, "rewardbench") == 0.5

    def test_a_lone_sample_is_worth_its_own_credit(self) -> None:
        assert expected_credit([replace(sample(None), correct=0.5)], 3, "published") == 0.5
