"""One token from logits: exact distributions, truncation as transformers does it, no sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.stats import chisquare, kstest
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rmr1_jax.planning.collectives import collectives
from rmr1_jax.planning.hlo import read_program
from rmr1_jax.sampling.sampler import BLOCK, SamplingParams, is_stop, request_uniform, sample

jitted = jax.jit(sample)


def params(
    rows: int, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> SamplingParams:
    fill = lambda value, dtype: jnp.full(rows, value, dtype)  # noqa: E731
    return SamplingParams(
        fill(temperature, jnp.float32),
        fill(top_p, jnp.float32),
        fill(top_k, jnp.int32),
        fill(min_p, jnp.float32),
    )


def probabilities(
    logits: np.ndarray, temperature: float, top_p: float, top_k: int, min_p: float
) -> np.ndarray:
    """The distribution that transformers would draw from."""
    scores, no_ids = torch.from_numpy(logits)[None] / temperature, torch.LongTensor()
    if top_k:
        scores = TopKLogitsWarper(top_k)(no_ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(no_ids, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(no_ids, scores)
    return torch.softmax(scores.double(), -1)[0].numpy()


SETTINGS = [
    {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
    {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
    {"temperature": 1.0, "top_p": 0.6, "top_k": 0, "min_p": 0.0},
    {"temperature": 1.3, "top_p": 1.0, "top_k": 5, "min_p": 0.0},
    {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.2},
    {"temperature": 1.5, "top_p": 0.8, "top_k": 20, "min_p": 0.05},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("vocabulary", [7, pytest.param(300, marks=pytest.mark.nightly), 1031])
def test_draws_follow_the_exact_distribution(options: dict, vocabulary: int) -> None:
    draws = 20_000
    logits = np.random.default_rng(vocabulary).normal(0, 2, vocabulary).astype(np.float32)
    expected = probabilities(logits, **options)
    uniform = jax.random.uniform(jax.random.key(3), (draws,))
    drawn = jitted(
        jnp.broadcast_to(logits, (draws, vocabulary)), uniform, params(draws, **options)
    ).token
    counts = np.bincount(np.asarray(drawn), minlength=vocabulary)
    assert counts[expected == 0].sum() == 0
    likely = expected * draws >= 5
    rest = ~likely & (expected > 0)
    observed, wanted = counts[likely], expected[likely] * draws
    if rest.any():
        observed, wanted = (
            np.append(observed, counts[rest].sum()),
            np.append(wanted, expected[rest].sum() * draws),
        )
    if len(observed) > 1:
        assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


@settings(max_examples=60)
@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=16, max_size=16),
    temperature=st.floats(0.1, 3),
    top_p=st.floats(0.05, 1),
    top_k=st.integers(0, 16),
    min_p=st.floats(0, 0.9),
    uniform=st.floats(0, 1, exclude_max=True, width=32),
)
def test_never_draws_what_transformers_would_remove(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float, uniform: float
) -> None:
    values = np.array(logits, np.float32)
    drawn = jitted(
        values[None],
        jnp.array([uniform], jnp.float32),
        params(1, temperature, top_p, top_k, min_p),
    )
    token = int(drawn.token[0])
    # Equal logits stay or go together here; sorting, as transformers does, keeps some of them.
    # A cumulative probability within rounding of top_p may fall on either side.
    removed = probabilities(values, temperature, min(top_p + 1e-4, 1.0), top_k, min_p * 0.999) == 0
    assert not removed[token] or (values == values[token]).sum() > 1
    assert np.isfinite(drawn.logprob[0]) and drawn.sampled_logprob[0] <= 1e-5


def test_both_log_probabilities_are_what_they_say() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (64, 50)).astype(np.float32)
    uniform = jax.random.uniform(jax.random.key(0), (64,))
    drawn = jitted(logits, uniform, params(64, 0.8, 0.7, 30, 0.01))
    for row in range(64):
        token = int(drawn.token[row])
        model = torch.log_softmax(torch.from_numpy(logits[row]), -1)[token]
        sampled = np.log(probabilities(logits[row], 0.8, 0.7, 30, 0.01)[token])
        assert drawn.logprob[row] == pytest.approx(float(model), abs=1e-5)
        assert drawn.sampled_logprob[row] == pytest.approx(sampled, abs=1e-5)


def test_greedy_rows_take_the_largest_logit_beside_rows_that_sample() -> None:
    logits = np.random.default_rng(0).normal(0, 1, (4, 50)).astype(np.float32)
    mixed = params(4)._replace(temperature=jnp.array([0.0, 1.0, 0.0, 1.0]))
    drawn = jitted(logits, jnp.full(4, 0.999), mixed)
    assert drawn.token[0] == logits[0].argmax() and drawn.token[2] == logits[2].argmax()
    assert drawn.sampled_logprob[0] == 0 and drawn.sampled_logprob[1] < 0


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24])
def test_the_ends_of_the_unit_interval_never_reach_a_removed_token(uniform: float) -> None:
    logits = np.full((1, 600), -np.inf, np.float32)
    logits[0, [3, 300, 301]] = [1.0, 0.0, 2.0]
    token = int(jitted(logits, jnp.array([uniform]), params(1)).token[0])
    assert token == (3 if uniform == 0 else 301)


@pytest.mark.devices8
def test_of_a_split_vocabulary_only_sums_of_blocks_and_one_block_move() -> None:
    rows, V = 8, 4 * 9 * 128  # as 152,064 of Qwen are 4 * 297 * 128
    logits = np.random.default_rng(0).normal(0, 2, (rows, V)).astype(np.float32)
    uniform = jnp.linspace(0.05, 0.95, rows)
    mesh = Mesh(np.array(jax.devices()[:4]), ("tensor",))
    split = jax.device_put(logits, NamedSharding(mesh, PartitionSpec(None, "tensor")))
    drawn, expected = (jitted(each, uniform, params(rows)) for each in (split, logits))
    assert drawn.token.tolist() == expected.token.tolist()
    np.testing.assert_allclose(drawn.sampled_logprob, expected.sampled_logprob, atol=1e-5)
    compiled = jitted.lower(split, uniform, params(rows)).compile().as_text() or ""
    moved = [each.wire_bytes for each in collectives(read_program(compiled))]
    assert moved and max(moved) <= 2 * rows * BLOCK * 4  # fp32; a device has nine blocks


def test_the_random_number_of_a_token_depends_on_its_identity_alone() -> None:
    def draw(seed: int, prompt: int, sample_index: int, position: int, rows: int) -> float:
        fill = lambda value: jnp.full(rows, value, jnp.int32)  # noqa: E731
        numbers = request_uniform(
            fill(seed).astype(jnp.uint32), fill(prompt), fill(sample_index), fill(position)
        )
        assert len(set(np.asarray(numbers).tolist())) == 1
        return float(numbers[0])

    assert draw(1, 2, 3, 4, rows=1) == draw(1, 2, 3, 4, rows=5)
    others = [draw(1, 2, 3, 5, 1), draw(1, 2, 4, 4, 1), draw(1, 3, 3, 4, 1), draw(2, 2, 3, 4, 1)]
    assert len({draw(1, 2, 3, 4, 1), *others}) == 5


def test_the_random_numbers_of_samples_and_positions_are_uniform() -> None:
    samples, positions = (x.ravel() for x in jnp.meshgrid(jnp.arange(64), jnp.arange(64)))
    seed, prompt = jnp.full(samples.shape, 3, jnp.uint32), jnp.full(samples.shape, 5)
    numbers = np.asarray(request_uniform(seed, prompt, samples, positions))
    assert kstest(numbers, "uniform").pvalue > 1e-3


def test_stop_ids_are_those_of_the_row() -> None:
    stops = jnp.array([[5, -1], [6, 7], [-1, -1]])
    assert is_stop(jnp.array([5, 5, 5]), stops).tolist() == [True, False, False]
