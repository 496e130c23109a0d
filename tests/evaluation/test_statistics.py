"""How sure a score is: against the formulas there are, and against the paper's own numbers."""

import math
from fractions import Fraction

import numpy as np
import pytest

from rmr1_jax.evaluation.statistics import (
    Means,
    Score,
    bootstrap,
    mcnemar,
    number,
    replicate_values,
    resamples,
    scores,
)


def coin_flips(right: int, n: int) -> np.ndarray:
    return (np.arange(n) < right).astype(float)


class TestResamples:
    def test_each_stratum_keeps_its_size(self) -> None:
        strata = np.array([2, 0, 0, 1, 0, 1, 1, 1])
        for weights in resamples(strata, replicates=20, seed=3):
            drawn = np.bincount(strata, weights)
            assert drawn.tolist() == [3, 4, 1]

    def test_all_prompts_of_a_stratum_are_drawn_alike(self) -> None:
        strata = np.array([0, 1, 1, 0, 1])
        mean = np.mean(list(resamples(strata, replicates=4000, seed=0)), axis=0)
        assert mean == pytest.approx(np.ones(5), abs=0.06)

    def test_the_seed_decides(self) -> None:
        def draw(seed: int) -> list[list[float]]:
            return [each.tolist() for each in resamples(np.zeros(30, int), 5, seed)]

        assert draw(1) == draw(1)
        assert draw(1) != draw(2)


class TestBootstrap:
    def test_of_independent_answers_it_is_the_formula(self) -> None:
        flips = coin_flips(310, 400)
        table = Means(range(400), {"accuracy": flips})
        analytic = math.sqrt(0.775 * 0.225 / 400)
        assert bootstrap(table)["accuracy"] == pytest.approx(analytic, rel=0.08)

    def test_answers_to_one_prompt_are_no_independent_evidence(self) -> None:
        flips = np.repeat(coin_flips(60, 100), 9)
        alone = bootstrap(Means(range(900), {"accuracy": flips}))["accuracy"]
        together = bootstrap(Means(np.repeat(range(100), 9).tolist(), {"accuracy": flips}))[
            "accuracy"
        ]
        assert together == pytest.approx(3 * alone, rel=0.15)

    def test_twice_the_same(self) -> None:
        table = Means(range(50), {"accuracy": coin_flips(20, 50)})
        assert bootstrap(table, 100, seed=4) == bootstrap(table, 100, seed=4)
        assert bootstrap(table, 100, seed=4) != bootstrap(table, 100, seed=5)

    def test_a_single_item_has_no_error_rather_than_none_at_all(self) -> None:
        table = Means(["only"], {"accuracy": np.array([1.0])})
        assert scores(table, 10)["accuracy"] == Score(1.0, 1, True, None)

    def test_strata_of_one_prompt_each_are_drawn_together(self) -> None:
        table = Means(range(40), {"accuracy": coin_flips(20, 40)})
        table.strata = np.arange(40)
        assert bootstrap(table)["accuracy"] == pytest.approx(0.5 / math.sqrt(40), rel=0.08)

    def test_nothing_judged_has_no_error(self) -> None:
        table = Means(range(3), {"accuracy": np.full(3, np.nan)})
        assert math.isnan(bootstrap(table, 10)["accuracy"])
        assert scores(table, 10)["accuracy"] == Score(None, 0, True, None)

    def test_replicates_that_drew_nothing_of_a_score_are_left_out(self) -> None:
        rare = np.array([1.0, 0.0] + [np.nan] * 8)
        table = Means(range(10), {"rare": rare})
        drawn = replicate_values(table, 300)["rare"]
        assert np.isnan(drawn).any()
        assert bootstrap(table, 300)["rare"] == np.nanstd(drawn, ddof=1)

    def test_columns_share_the_draws(self) -> None:
        """What pairs two runs: the difference of a judge to itself is exactly nothing."""
        flips = coin_flips(30, 70)
        drawn = replicate_values(Means(range(70), {"a": flips, "b": flips}), 50)
        assert np.array_equal(drawn["a"], drawn["b"])


def test_a_mean_takes_the_judgements_it_is_about() -> None:
    columns = {"all": np.array([1.0, 0.0, 1.0]), "some": np.array([np.nan, 0.5, 1.0])}
    found = scores(Means(["x", "x", "y"], columns, complete=False), replicates=20)
    assert (found["all"].value, found["all"].n) == (2 / 3, 3)
    assert (found["some"].value, found["some"].n) == (0.75, 2)
    assert not found["all"].complete


class TestMcNemar:
    @pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (3, 9), (9, 3), (5, 5), (106, 92)])
    def test_is_the_two_sided_sign_test(self, only_a: int, only_b: int) -> None:
        n = only_a + only_b
        tail = sum(Fraction(math.comb(n, i), 2**n) for i in range(min(only_a, only_b) + 1))
        assert mcnemar(only_a, only_b) == pytest.approx(float(min(Fraction(1), 2 * tail)))

    def test_known_values(self) -> None:
        assert mcnemar(0, 0) == 1.0
        assert mcnemar(0, 10) == 2 / 1024
        assert mcnemar(1, 9) == 22 / 1024

    def test_of_thousands_of_items(self) -> None:
        normal = math.erfc((abs(4000 - 4200) - 1) / math.sqrt(8200) / math.sqrt(2))
        assert mcnemar(4000, 4200) == pytest.approx(normal, rel=0.01)


def test_json_has_no_nan() -> None:
    assert number(math.nan) is None
    assert number(math.inf) is None
    assert type(number(np.float64(0.25))) is float
    assert Score(0.5, 2, True, None).to_json() == {
        "value": 0.5,
        "n": 2,
        "complete": True,
        "stderr": None,
    }
