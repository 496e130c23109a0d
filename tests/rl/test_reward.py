"""Rewards: the published one, the user's own, and what a bad function is told."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.rl import reward as rewards
from rmr1_jax.rl.reward import (
    Sampled,
    length_penalty,
    load_reward,
    published,
    score,
    score_shared,
)

SAMPLE = Sampled(
    id="pair-7",
    sample=3,
    prompt="Which is better?",
    response="<eval>A is right.</eval>\n<answer>[[A]]</answer><|im_end|>",
    label="A",
    tokens=12,
    truncated=False,
)


def test_the_published_reward_is_the_verdict_at_the_end() -> None:
    late = "<answer>[[A]]</answer>" + " and so on" * 6 + "<|im_end|>"
    assert published(SAMPLE) == 1.0
    assert published(replace(SAMPLE, label="B")) == -1.0
    assert published(replace(SAMPLE, response=late)) == -1.0
    assert load_reward("") is published
    np.testing.assert_array_equal(
        score(published, [SAMPLE, replace(SAMPLE, label="B")]), [1.0, -1.0]
    )


def test_a_function_of_the_users_own_may_lie_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_reward.py").write_text(
        "def short(sampled):\n    return sampled.tokens < 10\nNUMBER = 3\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path.copy())
    short = load_reward("my_reward:short")
    np.testing.assert_array_equal(score(short, [SAMPLE, replace(SAMPLE, tokens=4)]), [0.0, 1.0])
    with pytest.raises(UserError, match=r"my_reward.*has no long"):
        load_reward("my_reward:long")
    with pytest.raises(UserError, match="cannot call, NUMBER"):
        load_reward("my_reward:NUMBER")


def test_a_path_that_names_no_function_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_reward.py").write_text("import nothing_like_it\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path.copy())
    for path in ("my_reward", "my_reward:", ":function"):
        with pytest.raises(UserError, match=r"write package\.module:function"):
            load_reward(path)
    with pytest.raises(UserError, match="no_such_module cannot be imported"):
        load_reward("no_such_module:function")
    with pytest.raises(UserError, match="ModuleNotFoundError: No module named 'nothing_like_it'"):
        load_reward("broken_reward:function")


@pytest.mark.parametrize("value", [None, "1.0", float("nan"), float("inf"), [1.0], 1j])
def test_what_is_not_a_finite_number_is_refused_with_its_sample(value: Any) -> None:
    def mine(sampled: Sampled) -> Any:
        return value

    with pytest.raises(UserError, match="mine, sample 3 of prompt pair-7: it returned"):
        score(mine, [SAMPLE])


def test_a_function_that_raises_is_named_with_its_sample() -> None:
    def mine(sampled: Sampled) -> float:
        return 1 / (sampled.sample - 3)

    good = replace(SAMPLE, sample=4)
    with pytest.raises(UserError, match="sample 3 of prompt pair-7: it raised ZeroDivisionError"):
        score(mine, [good, SAMPLE])


def test_processes_share_rewards_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(values: np.ndarray) -> jax.Array:
        """As JAX does: each process' values, as JAX arrays; here both have the same."""
        return jnp.stack([jnp.asarray(values)] * 2)

    monkeypatch.setattr(rewards.jax, "process_count", lambda: 2)
    monkeypatch.setattr(rewards.multihost_utils, "process_allgather", gather)
    numbers = [0.1, 0.100000001, 1e39]
    samples = [replace(SAMPLE, sample=number) for number in (0, 0, 1, 1, 2)]
    found = score_shared(lambda sampled: numbers[sampled.sample], samples)
    assert found.tolist() == [numbers[each.sample] for each in samples]


@pytest.mark.parametrize("value", [1, True, np.float32(0.5), np.int64(-1), np.bool_(True)])
def test_any_real_number_will_do(value: Any) -> None:
    assert score(lambda sampled: value, [SAMPLE]) == [float(value)]


def test_the_length_penalty_falls_evenly_over_the_buffer() -> None:
    tokens = np.array([0, 60, 61, 80, 100, 120])
    expected = [0.0, 0.0, -1 / 40, -0.5, -1.0, -1.0]
    np.testing.assert_allclose(length_penalty(tokens, longest=100, buffer=40), expected)
