"""Advantages and token weights against the specification's table and plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.rl.advantage import Reduction, advantages, token_weights, zero_signal

# Spec §4.5, n = 7 and rewards of +1 and -1: k correct -> (advantage of a right one, of a wrong one)
TABLE = {
    1: (2.2678, -0.3780),
    2: (1.4638, -0.5855),
    3: (1.0690, -0.8018),
    4: (0.8018, -1.0690),
    5: (0.5855, -1.4638),
    6: (0.3780, -2.2678),
}


@pytest.mark.parametrize("correct", TABLE)
def test_the_table_of_the_specification_to_four_decimals(correct: int) -> None:
    rewards = np.array([[1.0] * correct + [-1.0] * (7 - correct)])
    right, wrong = TABLE[correct]
    expected = [[right] * correct + [wrong] * (7 - correct)]
    np.testing.assert_array_equal(np.round(advantages(rewards), 4), expected)


@pytest.mark.parametrize("reward", [1.0, -1.0, 0.1])
@pytest.mark.parametrize("options", [{}, {"normalise": False}, {"leave_one_out": True}])
def test_equal_rewards_give_exactly_nothing(reward: float, options: dict[str, bool]) -> None:
    np.testing.assert_array_equal(advantages(np.full((1, 7), reward), **options), np.zeros((1, 7)))


def test_a_group_of_one_has_mean_0_and_deviation_1() -> None:
    rewards = np.array([[1.0], [-1.0]])
    np.testing.assert_allclose(advantages(rewards), rewards / (1 + 1e-6), rtol=1e-12)
    np.testing.assert_array_equal(advantages(rewards, normalise=False), rewards)
    np.testing.assert_array_equal(zero_signal(rewards), [False, False])


@given(
    st.lists(st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4), min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_the_formulas_with_and_without_deviation_and_oneself(
    rewards: list[list[float]], normalise: bool, leave_one_out: bool
) -> None:
    got = advantages(np.array(rewards), normalise=normalise, leave_one_out=leave_one_out)
    for group, values in zip(rewards, got, strict=True):
        if len(set(group)) == 1:
            assert (values == 0).all()
            continue
        mean = sum(group) / 4
        deviation = (sum((r - mean) ** 2 for r in group) / 3) ** 0.5
        for reward, value in zip(group, values, strict=True):
            baseline = (sum(group) - reward) / 3 if leave_one_out else mean
            expected = (reward - baseline) / (deviation + 1e-6 if normalise else 1)
            assert value == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_only_exactly_equal_rewards_are_no_signal() -> None:
    rewards = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, np.nextafter(1.0, 2)], [-1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(zero_signal(rewards), [True, False, False])


LENGTHS, INCLUDED = np.array([3, 1, 5, 2, 4, 6, 2]), np.array([1, 1, 0, 1, 0, 0, 1], bool)


@pytest.mark.parametrize("included", [np.ones(7, bool), INCLUDED], ids=["all", "some masked"])
@pytest.mark.parametrize(
    ("reduction", "pool"),
    [
        ("sequence_mean", 4),
        ("token_mean", 4),
        ("pooled_mean", 4),
        ("pooled_mean", 2),
        ("pooled_mean", 1),
        ("pooled_mean", 100),
    ],
)
def test_weights_make_the_mean_of_means(
    reduction: Reduction, pool: int, included: np.ndarray
) -> None:
    rng = np.random.default_rng(0)
    losses = [rng.normal(size=length) for length in LENGTHS]
    size = {"sequence_mean": 1, "token_mean": len(losses), "pooled_mean": pool}[reduction]
    pools = [
        np.concatenate([losses[i] for i in members])
        for start in range(0, len(losses), size)
        if (members := [i for i in range(start, min(start + size, 7)) if included[i]])
    ]
    expected = np.mean([tokens.mean() for tokens in pools])

    weights = token_weights(LENGTHS, reduction, pool, included)
    total = sum(weight * loss.sum() for weight, loss in zip(weights, losses, strict=True))
    assert total / (weights * LENGTHS).sum() == pytest.approx(expected, rel=1e-12)
    assert (weights[~included] == 0).all()


def test_nothing_included_weighs_nothing() -> None:
    for reduction in ("sequence_mean", "pooled_mean", "token_mean"):
        weights = token_weights(LENGTHS, reduction, 4, np.zeros(7, bool))
        np.testing.assert_array_equal(weights, np.zeros(7))
        empty = token_weights(LENGTHS[:0], reduction, 4, np.zeros(0, bool))
        assert empty.shape == (0,)
