"""Sampling gives what one sequence alone would give, whatever shares its program."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from rmr1_jax.config import Sampling
from rmr1_jax.models.kv_cache import empty_cache
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.sampling.decode_loop import run_decode_loop
from rmr1_jax.sampling.decode_programs import cache_bucket, prompt_width
from rmr1_jax.sampling.decode_state import Requests, init_state
from rmr1_jax.sampling.prefill import PREFILL_CHUNK
from rmr1_jax.sampling.request_queue import common_length
from rmr1_jax.sampling.scheduler import Request, Sample, Scheduler, compact_size
from tests.sampling.conftest import VOCAB, random_requests

pytestmark = pytest.mark.usefixtures("never_compact")
LogitsOf = Callable[[list[int]], np.ndarray]
SchedulerOf = Callable[..., Scheduler]
Alone = Callable[[list[Request], int], list[list[Sample]]]


LONGEST = 150  # of any response here: the same buffers, and so the same program, for all tests


def answers(
    scheduler: Scheduler, requests: list[Request], prefix: Sequence[int] = ()
) -> list[list[Sample]]:
    found = dict(scheduler.generate(requests, max_new_tokens=LONGEST, prefix=prefix))
    return [found[index] for index in range(len(requests))]


def texts(found: list[list[Sample]]) -> list[list[list[int]]]:
    return [[sample.tokens.tolist() for sample in samples] for samples in found]


MOST_SAMPLES = 7


@pytest.fixture(scope="module")
def alone(scheduler_of: SchedulerOf) -> Alone:
    """Samples of each request from one slot, which has nothing to share anything with."""

    def run(requests: list[Request], samples: int) -> list[list[Sample]]:
        # A sample depends on its number, and not on how many there are.
        one_slot = scheduler_of(1, MOST_SAMPLES)
        return [answers(one_slot, [request])[0][:samples] for request in requests]

    return run


def test_greedy_tokens_and_log_probabilities_are_those_of_the_plain_forward(
    scheduler_of: SchedulerOf, logits_of: LogitsOf
) -> None:
    """Also while the cache grows with the longest response."""
    requests = random_requests(8, longest_prompt=60, longest_response=50)
    requests[2] = replace(requests[2], max_new_tokens=LONGEST, compare_ids=(3, 90))
    scheduler = scheduler_of(4)
    for request, [sample] in zip(requests, answers(scheduler, requests), strict=True):
        assert len(sample.tokens) == request.max_new_tokens and sample.finish_reason == "length"
        sequence = request.tokens + sample.tokens.tolist()
        logits = logits_of(sequence[:-1])[len(request.tokens) - 1 :]
        np.testing.assert_array_equal(sample.tokens, logits.argmax(-1))
        expected = jax.nn.log_softmax(logits)[np.arange(len(logits)), sample.tokens]
        np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)
        first, second = request.compare_ids
        np.testing.assert_allclose(
            sample.logit_diffs, logits[:, first] - logits[:, second], atol=1e-4
        )
    # A short response never pays for the longest.
    assert scheduler.work.programs == {(4, 128, 128), (4, 256, 128)}


@pytest.mark.parametrize(
    ("slots", "samples"),
    [
        (4, 1),
        (5, 3),
        (4, MOST_SAMPLES),
        pytest.param(3, 1, marks=pytest.mark.nightly),
        pytest.param(16, 1, marks=pytest.mark.nightly),
        pytest.param(16, 3, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_a_sample_does_not_depend_on_slots_neighbours_or_refills(
    scheduler_of: SchedulerOf, alone: Alone, slots: int, samples: int
) -> None:
    requests = random_requests(8, seed=4, temperature=1.0)
    together = scheduler_of(slots, samples, chunk_steps=23)
    assert texts(answers(together, requests)) == texts(alone(requests, samples))


def test_the_order_of_the_queue_changes_nothing(scheduler_of: SchedulerOf) -> None:
    requests = random_requests(9, seed=2, temperature=0.8, top_p=0.9)
    forwards, backwards = (answers(scheduler_of(4), some) for some in (requests, requests[::-1]))
    assert texts(backwards)[::-1] == texts(forwards)


def test_the_samples_of_a_group_differ_and_a_seed_repeats_them(scheduler_of: SchedulerOf) -> None:
    requests = [
        replace(request, max_new_tokens=20)
        for request in random_requests(5, temperature=1.0, seed=3)
    ]
    grouped = scheduler_of(5, 3)
    first, again = (texts(answers(grouped, requests)) for _ in range(2))
    other = texts(answers(grouped, [replace(request, seed=1) for request in requests]))
    assert first == again and first[0] != other[0]
    assert len({tuple(tokens) for tokens in first[0]}) == 3


@pytest.mark.nightly  # test_sampler.py has the same of random numbers and of draws
def test_samples_follow_the_distribution_of_the_model(
    config: ModelConfig, weights: Params, logits_of: LogitsOf
) -> None:
    samples = 2048
    prompt = [5, 17, 60]
    many = Scheduler(config, weights, slots=256, group_size=samples)
    [found] = answers(many, [Request(prompt, 1, sampling=Sampling(temperature=1.0))])
    counts = np.bincount([int(sample.tokens[0]) for sample in found], minlength=VOCAB)
    expected = np.asarray(jax.nn.softmax(logits_of(prompt)[-1]), np.float64) * samples
    likely = expected >= 5
    observed = np.append(counts[likely], counts[~likely].sum())
    wanted = np.append(expected[likely], expected[~likely].sum())
    assert chisquare(observed, wanted * (samples / wanted.sum())).pvalue > 1e-3


def test_a_stop_id_ends_a_response_and_is_its_last_token(scheduler_of: SchedulerOf) -> None:
    requests = [replace(request, max_new_tokens=40) for request in random_requests(4, seed=8)]
    sample = answers(scheduler_of(4), requests)[0][0]
    stop = int(sample.tokens[7])
    first = sample.tokens.tolist().index(stop)
    requests[0] = replace(requests[0], stop_ids=(stop,))
    stopped = answers(scheduler_of(4), requests)[0][0]
    assert stopped.finish_reason == "stop"
    assert stopped.tokens.tolist() == sample.tokens[: first + 1].tolist()


# Counts for which the batch is full, so that all examples run the same two programs.
@settings(max_examples=8)
@given(
    count=st.integers(5, 12),
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(4, 1), (5, 3)]),
)
def test_every_request_is_answered_once_and_in_full(
    scheduler_of: SchedulerOf, count: int, seed: int, shape: tuple[int, int]
) -> None:
    requests = random_requests(count, longest_response=30, seed=seed, temperature=1.0)
    scheduler = scheduler_of(*shape, chunk_steps=7)
    found = list(scheduler.generate(requests, max_new_tokens=LONGEST))
    assert sorted(index for index, _ in found) == list(range(count))
    _, samples = shape
    for index, group in found:
        assert len(group) == samples
        assert all(len(sample.tokens) == requests[index].max_new_tokens for sample in group)
    expected = samples * sum(request.max_new_tokens for request in requests)
    assert scheduler.work.live_row_steps == expected


# ---- what is computed, exactly


@pytest.mark.parametrize(
    ("length", "samples"),
    [
        (300, 1),
        pytest.param(40, 1, marks=pytest.mark.nightly),
        pytest.param(40, 3, marks=pytest.mark.nightly),
        pytest.param(600, 3, marks=pytest.mark.nightly),
    ],
)
def test_prompts_are_computed_once_per_group_and_a_common_prefix_once(
    scheduler_of: SchedulerOf, length: int, samples: int
) -> None:
    """Tokens and log-probabilities stay: also of prompts that have none of it, or little else."""
    requests, prefix = requests_with_prefix(length)
    every = scheduler_of(4 if samples == 1 else 5, samples, chunk_steps=9)
    expected, without = answers(every, requests), every.work.prefill_tokens
    found = answers(every, requests, prefix=prefix)
    assert texts(found) == texts(expected)
    for some, others in zip(found, expected, strict=True):
        for one, other in zip(some, others, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
    assert without == sum(computed(request.tokens, 0) for request in requests)
    rest = [common_length(request.tokens[:-1], prefix) for request in requests]
    assert rest.count(length) == 8 and rest[8:] == [0, length // 2, length - 1]
    assert every.work.prefill_tokens == computed_once(prefix) + sum(
        computed(request.tokens, shared) for request, shared in zip(requests, rest, strict=True)
    )


def requests_with_prefix(length: int) -> tuple[list[Request], list[int]]:
    """Eight prompts that begin with it, one without it, one with half of it, and it alone."""
    prefix = np.random.default_rng(7).integers(1, VOCAB, length).tolist()
    requests = [
        replace(request, tokens=prefix + request.tokens)
        for request in random_requests(
            8, longest_prompt=200, longest_response=30, seed=3, temperature=1.0
        )
    ]
    requests[5] = replace(requests[5], tokens=[*prefix, 9])
    half = [*prefix[: length // 2], 0, 1, 2]
    others = [Request([0, 4, 8], 20), Request(half, 5), Request(prefix, 7)]
    return [*requests, *others], prefix


def computed(tokens: list[int], shared: int) -> int:
    """Positions of a prefill in whole chunks."""
    return -(-(len(tokens) - 1 - shared) // PREFILL_CHUNK) * PREFILL_CHUNK


def computed_once(prefix: list[int]) -> int:
    """Positions of a prefix: its chunks are no wider than its cache."""
    chunk = min(PREFILL_CHUNK, prompt_width(len(prefix)))
    return -(-len(prefix) // chunk) * chunk


def test_freed_slots_are_refilled_at_once(scheduler_of: SchedulerOf) -> None:
    """No slot idles while a sample waits: the steps are those of an ideal list schedule."""
    requests = random_requests(40, longest_prompt=20, seed=6)
    scheduler = scheduler_of(4)
    answers(scheduler, requests)
    busy = [0] * 4
    for request in requests:
        slot = busy.index(min(busy))
        busy[slot] += request.max_new_tokens
    assert scheduler.work.steps == max(busy)


def test_stragglers_continue_in_a_smaller_batch(
    scheduler_of: SchedulerOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [replace(r, max_new_tokens=5) for r in random_requests(4, seed=2, temperature=1.0)]
    requests[2] = replace(requests[2], max_new_tokens=100)
    scheduler = scheduler_of(4)
    expected = texts(answers(scheduler, requests))
    monkeypatch.setattr("rmr1_jax.sampling.scheduler.compact_size", compact_size)
    assert texts(answers(scheduler, requests)) == expected
    assert scheduler.work.row_steps <= 4 * 5 + 95 + 4  # the last 95 tokens are one row wide
    assert scheduler.work.programs == {(4, 128, 128), (1, 128, 128)}


@pytest.mark.nightly
def test_the_cache_grows_with_the_longest_response(config: ModelConfig, weights: Params) -> None:
    scheduler = Scheduler(config, weights, slots=2)
    asked = [Request([1, 2, 3], 300), Request([1, 2], 20)]
    list(scheduler.generate(asked, max_new_tokens=300))
    assert sorted({length for _, length, _ in scheduler.work.programs}) == [128, 256, 512]
    assert {width for _, _, width in scheduler.work.programs} == {128}


def test_sizes_come_from_short_ladders() -> None:
    assert [cache_bucket(n) for n in (1, 128, 129, 5000)] == [128, 128, 256, 8192]
    assert [prompt_width(n) for n in (1, 257, 385, 1025, 4096)] == [128, 384, 512, 1536, 4096]


# ---- programs


def test_sampling_parameters_and_lengths_recompile_nothing(scheduler_of: SchedulerOf) -> None:
    some = scheduler_of(4)
    answers(some, random_requests(6, longest_prompt=100, longest_response=100, seed=1))
    compiled = some.programs.run._cache_size()
    for seed, options in enumerate(
        [{"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.0, "top_k": 5, "min_p": 0.1}, {}]
    ):
        requests = random_requests(9, longest_prompt=90, longest_response=100, seed=seed, **options)
        answers(some, [replace(r, stop_ids=(1, 2), seed=seed) for r in requests])
    assert some.programs.run._cache_size() == compiled


@pytest.mark.parametrize(
    ("samples", "slots", "prefix_width"),
    [
        (1, 6, 0),
        (3, 6, 64),
        pytest.param(1, 6, 64, marks=pytest.mark.nightly),
        pytest.param(3, 6, 0, marks=pytest.mark.nightly),
    ],
)
def test_no_cache_is_copied_while_decoding(
    config: ModelConfig, weights: Params, samples: int, slots: int, prefix_width: int
) -> None:
    state = init_state(
        config,
        Requests.empty(8, 128),
        group_size=samples,
        slots=slots,
        prompt_slots=slots if samples == 1 else 4,
        cache_length=16,
        max_new_tokens=64,
        dtype=jnp.float32,
    )
    if prefix_width:
        state = replace(state, prefix=empty_cache(config, 1, prefix_width, jnp.float32))
    run = jax.jit(partial(run_decode_loop, config), donate_argnums=1)
    text = run.lower(weights, state, 100, 0).compile().as_text() or ""
    shapes = {
        ",".join(map(str, leaf.shape))
        for leaf in jax.tree.leaves((state.prompts, state.responses, state.prefix))
    }
    copies = re.findall(r"= f32\[([0-9,]+)\][^ ]* copy\(", text)
    assert not shapes & set(copies)
    # Nor is any written whole: each update is one column of all slots, or one chunk of a prompt.
    whole = rf"= f32\[(?:{'|'.join(shapes)})\][^ ]* (?:select|concatenate|pad|scatter)\("
    assert not re.findall(whole, text)
