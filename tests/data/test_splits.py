"""What is kept, where, and on which side: decided from the facts alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.data.ngrams import hash_text
from rmr1_jax.data.scan import RowStats, Status, row_stats_type
from rmr1_jax.data.splits import SPLITS, Choices, EmptyMixture, Plan, make_plan, repeated_ids
from rmr1_jax.errors import UserError

ALL = Choices("alternate", 0.0, 0.0, True, 0.0, {})
TRAIN, VALIDATION, DISTILLATION = range(3)


def facts(count: int, **columns: Any) -> RowStats:
    table = np.zeros(count, row_stats_type(signatures=False))
    table["label"] = 1
    table["content"] = np.arange(count)
    table["lot"] = [hash_text(str(number)) for number in range(count)]
    for name, values in columns.items():
        table[name] = values
    return table


def sizes(plan: Plan) -> list[int]:
    return [int(np.sum(plan.split == number)) for number in range(len(SPLITS))]


def test_the_published_mixture_splits_as_published() -> None:
    plan = make_plan(facts(72_983), replace(ALL, distillation=0.12))
    assert sizes(plan) == [64_226, 0, 8_757]
    assert np.bincount(plan.label).tolist() == [0, 36_492, 36_491]


def test_validation_is_taken_first_and_distillation_from_the_rest() -> None:
    plan = make_plan(facts(1000), replace(ALL, validation=0.1, distillation=0.5))
    assert sizes(plan) == [450, 100, 450]
    assert sizes(make_plan(facts(1000), replace(ALL, validation=7, distillation=1))) == [0, 7, 993]
    assert sizes(make_plan(facts(1000), replace(ALL, distillation=30))) == [970, 0, 30]


@given(st.integers(20, 300), st.integers(0, 300))
def test_added_records_bring_no_other_into_validation(count: int, more: int) -> None:
    choices = replace(ALL, validation=15)
    before, after = make_plan(facts(count), choices), make_plan(facts(count + more), choices)
    held_out = np.flatnonzero(after.split[:count] == VALIDATION)
    assert (before.split[held_out] == VALIDATION).all()


@pytest.mark.parametrize(("name", "number"), [("validation", 10), ("distillation", 11)])
def test_a_split_larger_than_the_data_is_refused(name: str, number: float) -> None:
    wanted: dict[str, Any] = {name: number}
    with pytest.raises(UserError, match=f"--{name}={number} is more than the 10 records"):
        make_plan(facts(10), replace(ALL, **wanted))


def test_an_empty_mixture_is_refused() -> None:
    with pytest.raises(EmptyMixture, match="of 5 records none is left"):
        make_plan(facts(5, status=Status.BAD), ALL)
    with pytest.raises(EmptyMixture):
        make_plan(facts(0), ALL)


class TestPositions:
    def test_alternate_over_what_is_kept(self) -> None:
        status = [0, Status.BAD, 0, 0, Status.FILTERED, 0, 0]
        plan = make_plan(facts(7, status=status), ALL)
        assert plan.label.tolist() == [1, 0, 2, 1, 0, 2, 1]

    def test_of_released_prompts_stay(self) -> None:
        plan = make_plan(facts(5, rendered=[0, 1, 1, 0, 0]), ALL)
        assert plan.label.tolist() == [1, 0, 0, 2, 1]

    def test_may_be_shuffled(self) -> None:
        plan = make_plan(facts(4000), replace(ALL, balance="shuffle", validation=0.5))
        for split in (TRAIN, VALIDATION):
            share = np.mean(plan.label[plan.split == split] == 1)
            assert 0.45 < share < 0.55
        assert not np.array_equal(plan.label, make_plan(facts(4000), ALL).label)

    def test_may_stay_as_given(self) -> None:
        assert not make_plan(facts(9), replace(ALL, balance="as_given")).label.any()


class TestDuplicates:
    def test_leave_the_first(self) -> None:
        plan = make_plan(facts(5, content=[7, 8, 7, 7, 9]), ALL)
        assert plan.status.tolist() == [0, 0, Status.DUPLICATE, Status.DUPLICATE, 0]

    def test_may_be_kept(self) -> None:
        plan = make_plan(facts(5, content=[7, 8, 7, 7, 9]), replace(ALL, exact_duplicates=False))
        assert plan.kept == 5

    def test_of_bad_records_do_not_count(self) -> None:
        plan = make_plan(facts(3, content=0, status=[Status.BAD, Status.IDENTICAL, 0]), ALL)
        assert plan.status.tolist() == [Status.BAD, Status.IDENTICAL, 0]

    def test_of_what_a_benchmark_asks_go_with_it(self) -> None:
        plan = make_plan(facts(3, content=[4, 4, 5], status=[Status.SAME_QUESTION, 0, 0]), ALL)
        assert plan.status.tolist() == [Status.SAME_QUESTION, Status.DUPLICATE, 0]

    def test_that_are_near_are_found_by_their_signatures(self) -> None:
        table = np.zeros(4, row_stats_type(signatures=True))
        table["content"] = table["lot"] = np.arange(4)
        table["signature"] = np.random.default_rng(0).integers(0, 2**32, table["signature"].shape)
        table["signature"][2, 3:] = table["signature"][0, 3:]
        plan = make_plan(table, replace(ALL, near_duplicates=0.9))
        assert plan.status.tolist() == [0, 0, Status.NEAR_DUPLICATE, 0]


class TestCounts:
    def test_limit_a_source(self) -> None:
        table = facts(300, source=np.repeat([0, 1, 2], 100))
        plan = make_plan(table, replace(ALL, counts={0: 30, 2: 500}))
        assert np.bincount(table["source"][plan.split >= 0]).tolist() == [30, 100, 100]
        assert (plan.status == Status.NOT_CHOSEN).sum() == 70

    def test_do_not_decide_about_the_splits(self) -> None:
        table = facts(2000, source=np.repeat([0, 1], 1000))
        plan = make_plan(table, replace(ALL, counts={0: 500}, validation=0.2))
        share = np.mean(plan.split[:1000][plan.split[:1000] >= 0] == VALIDATION)
        assert 0.14 < share < 0.26

    def test_keep_the_same_records_when_another_source_comes_first(self) -> None:
        table = facts(100)
        alone = make_plan(table, replace(ALL, counts={0: 20}))
        other = facts(50, source=1, lot=np.arange(50), content=np.arange(1000, 1050))
        both = make_plan(np.concatenate([other, table]), replace(ALL, counts={0: 20}))
        assert np.array_equal(both.status[50:], alone.status)


def test_repeated_ids_are_found_among_examples() -> None:
    status = [0, 0, Status.BAD, Status.FILTERED, Status.TOO_LONG]
    assert repeated_ids(facts(5, lot=[3, 3, 0, 0, 3], status=status)).tolist() == [
        False,
        True,
        False,
        False,
        True,
    ]
