"""Lengths, stop ids and the floor, counted by hand."""

import runpy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bandwidth import Traffic, least_traffic
from benchmarks.measure import agreement
from benchmarks.prompts import prompt_maker
from benchmarks.workloads import Workload, choose_stop_ids, log_normal_lengths
from rmr1_jax.models.model_config import ModelConfig


@given(count=st.integers(9, 300), seed=st.integers(0, 1000))
def test_lengths_have_the_mean_and_one_longest_exactly(count: int, seed: int) -> None:
    lengths = log_normal_lengths(count, seed=seed)
    assert len(lengths) == count
    assert sum(lengths) == 64 * count
    assert sorted(lengths)[-2] < max(lengths) == 512
    assert min(lengths) >= 1


def test_lengths_that_no_mean_allows_are_refused() -> None:
    with pytest.raises(ValueError, match="7 lengths of mean 64 cannot have a longest one of 512"):
        log_normal_lengths(7, seed=0)


def test_stop_ids_end_samples_where_they_should_and_not_before() -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 5000, (7, 512)).tolist()
    wanted = [512, 1, 20, 64, 64, 100, 300]
    stops = choose_stop_ids(samples, wanted)
    ends = [
        next((i for i, token in enumerate(sample, 1) if token in stops), len(sample))
        for sample in samples
    ]
    assert len(stops) == 6
    assert ends == pytest.approx(wanted, abs=3)


def test_a_sample_without_a_token_of_its_own_gets_no_stop_id() -> None:
    assert choose_stop_ids([[5, 5, 5, 5], [5, 5, 5, 5]], [4, 2]) == ()


def test_the_floor_reads_a_prompt_once_for_its_group_and_the_weights_once_a_step() -> None:
    config = ModelConfig(
        model_type="llama",
        vocab_size=10,
        hidden_size=4,
        intermediate_size=8,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=2,
        max_position=64,
    )
    weights = {
        "embed": {"embedding": np.zeros((10, 4), np.float32)},
        "lm_head": np.zeros((4, 10), np.float32),
    }
    group = Workload("x", "x", [[1, 2, 3]], [[1, 3]], limit=3, slots=2)
    entry = 2 * 2 * 1 * 2 * 4  # key and value, layers, heads, head size, bytes
    # The longer sample sees 2 prompt entries at each of 3 steps; responses see 1 and 1 + 2 + 3.
    assert least_traffic(group, config, weights, steps=3) == Traffic(
        weights=3 * 4 * 10 * 4, kv=(3 * 2 + 1 + 6) * entry
    )


def test_agreement_counts_the_tokens_before_a_first_difference_and_none_after_an_end() -> None:
    ours = [[[1, 2, 3, 4]], [[5, 9, 9, 9]]]
    theirs = [[[1, 2, 7, 4]], [[5, 9, 8, 8]]]
    assert agreement(ours, theirs, ends=[9]) == {"samples": 0.5, "tokens": 4 / 6, "compared": 6}


def test_prompts_have_the_widths_asked_for(tmp_path) -> None:
    make = prompt_maker(tmp_path, vocabulary=50)
    prompts = make([3, 64, 5000], 1)
    assert [len(prompt) for prompt in prompts] == [3, 64, 5000]
    assert prompts == make([3, 64, 5000], 1) != make([3, 64, 5000], 2)
    assert {token for prompt in prompts for token in prompt} <= set(range(50))


def test_packed_rows_hold_little_padding(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("benchmarks.padding", run_name="__main__")
    assert "%" in capsys.readouterr().out
