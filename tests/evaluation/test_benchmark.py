"""From records to credits: passes, votes, and prompts that several items share."""

import numpy as np
import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmark import GroupSums, credits, mean_of_present, prompts_of
from rmr1_jax.evaluation.benchmarks import BENCHMARKS
from rmr1_jax.evaluation.record import Record
from tests.evaluation.made import judged


def record(right: float, id: str = "x", **fields: object) -> Record:
    return judged("preferences", right, id=id, **fields)


class TestCredits:
    def test_one_judgement_an_item(self) -> None:
        found = credits([record(1, "a"), record(0, "b", position="B"), record(2, "c")])
        assert found.credit.tolist() == [[1, 0, 0]]
        assert [item.id for item in found.items] == ["a", "b", "c"]

    def test_a_credit_that_the_record_gives_is_kept(self) -> None:
        half = Record("p", "a", 0, "g", None, "A", None, "none", 0.5)
        assert credits([half]).credit.tolist() == [[0.5]]

    def test_both_orders_are_two_passes(self) -> None:
        records = [record(1, "a"), record(0, "a", position="B"), record(1, "b", position="B")]
        found = credits(records)
        np.testing.assert_array_equal(found.credit, [[1, np.nan], [0, 1]])
        assert found.judged.tolist() == [True, True]
        assert found.judged_throughout.tolist() == [True, False]

    def test_a_majority_is_graded_by_the_rule(self) -> None:
        votes = [record(right, sample=n) for n, right in enumerate([1, 0, 1])]
        assert credits(votes).credit.tolist() == [[1]]
        assert credits(votes[:2]).credit.tolist() == [[0]]
        assert credits(votes[:2], "rewardbench").credit.tolist() == [[0.5]]

    def test_records_of_two_runs_are_refused(self) -> None:
        with pytest.raises(UserError, match=r"x \(g\), chosen response A, is there twice .*7.*two"):
            credits([record(1), record(1, index=7)], identity=lambda record: record.id)


class TestPrompts:
    def test_items_with_one_prompt_are_drawn_together(self) -> None:
        items = [record(1, "a", prompt="p"), record(1, "b", prompt="q"), record(1, "c", prompt="p")]
        found = prompts_of(items, stratum=lambda item: item.group, otherwise=lambda item: item.id)
        assert found.of_item.tolist() == [0, 1, 0]
        assert found.strata.tolist() == [0, 0]

    def test_without_a_fingerprint_the_item_speaks_for_itself(self) -> None:
        items = [record(1, "a"), record(1, "a", group="h"), record(1, "b", prompt="a", group="h")]
        found = prompts_of(items, stratum=lambda item: item.group, otherwise=lambda item: item.id)
        assert found.of_item.tolist() == [0, 0, 1]
        assert found.strata.tolist() == [0, 1]


def test_sums_by_group_leave_out_what_was_not_judged() -> None:
    credit = np.array([[1.0, 0.5, np.nan], [0.0, np.nan, 1.0]])
    sums = GroupSums(credit, np.array([0, 1, 0]), np.array([0, 1, 1]), groups=3)
    right, total = sums(np.array([2.0, 3.0]))
    assert right.tolist() == [[2, 1.5, 0], [0, 2, 0]]
    assert total.tolist() == [[2, 3, 0], [2, 2, 0]]


def test_the_mean_of_nothing_is_not_a_number() -> None:
    found = mean_of_present(np.array([[1.0, np.nan], [np.nan, np.nan]]), 1)
    assert found[0] == 1 and np.isnan(found[1])


class TestBenchmarks:
    def test_names_and_order(self) -> None:
        assert [*BENCHMARKS] == ["rewardbench", "rm_bench", "rmb", "preferences"]

    @pytest.mark.parametrize("name", [*BENCHMARKS])
    def test_no_records_score_nothing_and_are_incomplete(self, name: str) -> None:
        table = BENCHMARKS[name].make_table([], "published")
        found, support = table.values(np.ones(0)), table.support()
        assert found.keys() == support.keys()
        assert all(np.isnan(value) for value in found.values())
        assert set(support.values()) == {(0, False)}
        table.details()
