"""The engine gives what one sequence alone would give, whatever shares its program."""

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
from rmr1_jax.sampling import decode_loop as engine
from rmr1_jax.sampling.decode_loop import generate
from rmr1_jax.sampling.decode_programs import cache_length, prompt_width
from rmr1_jax.sampling.decode_state import EngineState, Requests, init_state
from rmr1_jax.sampling.prefill import PREFILL_CHUNK
from rmr1_jax.sampling.request_queue import common_length
from rmr1_jax.sampling.scheduler import Request, Sample, Scheduler
from tests.sampling.conftest import VOCAB, random_requests


def answers(
    engine: Scheduler, requests: list[Request], prefix: Sequence[int] = ()
) -> list[list[Sample]]:
    longest = max(request.max_new_tokens for request in requests)
    found = dict(engine.generate(requests, max_new_tokens=longest, prefix=prefix))
    return [found[index] for index in range(len(requests))]


def texts(found: list[list[Sample]]) -> list[list[list[int]]]:
    return [[sample.tokens.tolist() for sample in samples] for samples in found]


@pytest.fixture(scope="module")
def alone(config: ModelConfig, weights: Params) -> Callable[[list[Request], int], list]:
    """Each request in an engine of one slot: nothing to share anything with."""
    one_slot: dict[int, Scheduler] = {}

    def run(requests: list[Request], samples: int) -> list:
        if samples not in one_slot:
            one_slot[samples] = Scheduler(config, weights, slots=1, group_size=samples)
        return [answers(one_slot[samples], [request])[0] for request in requests]

    return run


def test_greedy_tokens_and_log_probabilities_are_those_of_the_plain_forward(
    config: ModelConfig, weights: Params, logits_of: Callable[[list[int]], np.ndarray]
) -> None:
    requests = random_requests(12, longest_prompt=60, longest_response=50)
    for request, [sample] in zip(
        requests, answers(Scheduler(config, weights, slots=4), requests), strict=True
    ):
        assert len(sample.tokens) == request.max_new_tokens and sample.finish_reason == "length"
        sequence = request.tokens + sample.tokens.tolist()
        logits = logits_of(sequence[:-1])[len(request.tokens) - 1 :]
        np.testing.assert_array_equal(sample.tokens, logits.argmax(-1))
        expected = jax.nn.log_softmax(logits)[np.arange(len(logits)), sample.tokens]
        np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("slots", "samples"), [(3, 1), (16, 1), (5, 3), (16, 3), (4, 7)], ids=lambda x: str(x)
)
def test_a_sample_does_not_depend_on_slots_neighbours_or_refills(
    config: ModelConfig, weights: Params, alone: Callable, slots: int, samples: int
) -> None:
    requests = random_requests(10, longest_response=150, seed=4, temperature=1.0)
    together = Scheduler(config, weights, slots=slots, group_size=samples, chunk_steps=23)
    assert texts(answers(together, requests)) == texts(alone(requests, samples))


def test_the_order_of_the_queue_changes_nothing(
    config: ModelConfig, weights: Params, alone: Callable
) -> None:
    requests = random_requests(9, longest_response=60, seed=2, temperature=0.8, top_p=0.9)
    backwards = answers(Scheduler(config, weights, slots=4), requests[::-1])
    assert texts(backwards)[::-1] == texts(alone(requests, 1))


def test_the_samples_of_a_group_differ_and_a_seed_repeats_them(
    config: ModelConfig, weights: Params
) -> None:
    [request] = random_requests(1, temperature=1.0, seed=3)
    request = replace(request, max_new_tokens=20)
    grouped = Scheduler(config, weights, slots=4, group_size=4)
    first, again = (texts(answers(grouped, [request]))[0] for _ in range(2))
    other = texts(answers(grouped, [replace(request, seed=1)]))[0]
    assert first == again and first != other
    assert len({tuple(tokens) for tokens in first}) == 4


def test_samples_follow_the_distribution_of_the_model(
    config: ModelConfig, weights: Params, logits_of: Callable[[list[int]], np.ndarray]
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


def test_a_stop_id_ends_a_response_and_is_its_last_token(
    config: ModelConfig, weights: Params
) -> None:
    [request] = random_requests(1, seed=8)
    request = replace(request, max_new_tokens=40)
    plain = Scheduler(config, weights, slots=1)
    [[sample]] = answers(plain, [request])
    stop = int(sample.tokens[7])
    first = sample.tokens.tolist().index(stop)
    [[stopped]] = answers(plain, [replace(request, stop_ids=(stop,))])
    assert stopped.finish_reason == "stop"
    assert stopped.tokens.tolist() == sample.tokens[: first + 1].tolist()


@settings(max_examples=8)
@given(
    count=st.integers(1, 12),
    seed=st.integers(0, 1000),
    samples=st.sampled_from([1, 3]),
    slots=st.sampled_from([2, 6]),
)
def test_every_request_is_answered_once_and_in_full(
    config: ModelConfig, weights: Params, count: int, seed: int, samples: int, slots: int
) -> None:
    requests = random_requests(count, longest_response=30, seed=seed, temperature=1.0)
    key = slots, samples
    if key not in _engines:
        _engines[key] = Scheduler(config, weights, slots=slots, group_size=samples, chunk_steps=7)
    found = list(_engines[key].generate(requests, max_new_tokens=30))
    assert sorted(index for index, _ in found) == list(range(count))
    for index, group in found:
        assert len(group) == samples
        assert all(len(sample.tokens) == requests[index].max_new_tokens for sample in group)
    work = _engines[key].work
    assert work.live_row_steps == samples * sum(r.max_new_tokens for r in requests)


_engines: dict[tuple[int, int], Scheduler] = {}


# ---- what is computed, exactly


def test_a_prompt_is_prefilled_once_for_its_group(config: ModelConfig, weights: Params) -> None:
    requests = random_requests(6, longest_prompt=700, longest_response=20, seed=1)
    work = {}
    for samples in (1, 7):
        some = Scheduler(config, weights, slots=7, group_size=samples)
        answers(some, requests)
        work[samples] = some.work.prefill_tokens
    chunks = sum(-(-(len(request.tokens) - 1) // PREFILL_CHUNK) for request in requests)
    assert work[1] == work[7] == chunks * PREFILL_CHUNK


@pytest.mark.parametrize(("length", "samples"), [(40, 1), (300, 1), (600, 3)])
def test_a_common_prefix_is_computed_once(
    config: ModelConfig, weights: Params, length: int, samples: int
) -> None:
    """Tokens and log-probabilities stay: also of prompts that have none of it, or little else."""
    requests, prefix = requests_with_prefix(length)
    every = Scheduler(config, weights, slots=4, group_size=samples, chunk_steps=9)
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
    """Eight prompts that begin with it; one without it, one with half of it, it alone."""
    prefix = np.random.default_rng(7).integers(1, VOCAB, length).tolist()
    requests = [
        replace(request, tokens=prefix + request.tokens)
        for request in random_requests(8, longest_response=30, seed=3, temperature=1.0)
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


def test_log_odds_of_two_tokens_are_those_of_the_plain_forward(
    config: ModelConfig, weights: Params, logits_of: Callable[[list[int]], np.ndarray]
) -> None:
    requests = [
        replace(request, compare_ids=(3 + index, 90))
        for index, request in enumerate(random_requests(3, longest_response=20, temperature=0.5))
    ]
    for request, [sample] in zip(
        requests, answers(Scheduler(config, weights, slots=2), requests), strict=True
    ):
        logits = logits_of(request.tokens + sample.tokens.tolist()[:-1])[len(request.tokens) - 1 :]
        expected = logits[:, request.compare_ids[0]] - logits[:, 90]
        np.testing.assert_allclose(sample.logit_diffs, expected, atol=1e-4)


def test_freed_slots_are_refilled_at_once(config: ModelConfig, weights: Params) -> None:
    """No slot idles while a sample waits: the steps are those of an ideal list schedule."""
    requests = random_requests(40, longest_prompt=20, longest_response=60, seed=6)
    some = Scheduler(config, weights, slots=4)
    answers(some, requests)
    busy = [0] * 4
    for request in requests:
        slot = busy.index(min(busy))
        busy[slot] += request.max_new_tokens
    assert some.work.steps == max(busy)


def test_stragglers_go_on_in_a_smaller_batch(config: ModelConfig, weights: Params) -> None:
    requests = [replace(r, max_new_tokens=5) for r in random_requests(8, seed=2)]
    requests[3] = replace(requests[3], max_new_tokens=100)
    some = Scheduler(config, weights, slots=8)
    answers(some, requests)
    assert some.work.row_steps <= 8 * 5 + 95 + 8  # the 95 last tokens one row wide
    assert {slots for slots, _, _ in some.work.programs} == {8, 1}


def test_a_short_context_never_pays_for_the_longest(config: ModelConfig, weights: Params) -> None:
    some = Scheduler(config, weights, slots=2)
    answers(some, [Request([1, 2, 3], 300), Request([1, 2], 20)])
    rings = sorted({ring for _, ring, _ in some.work.programs})
    assert rings == [128, 256, 512]
    assert {width for _, _, width in some.work.programs} == {128}


def test_sizes_come_from_short_ladders() -> None:
    assert [cache_length(n) for n in (1, 128, 129, 5000)] == [128, 128, 256, 8192]
    assert [prompt_width(n) for n in (1, 257, 385, 1025, 4096)] == [128, 384, 512, 1536, 4096]


# ---- one program


def one_program(config: ModelConfig, samples: int, slots: int) -> tuple[Callable, EngineState]:
    requests = random_requests(8, longest_prompt=100, longest_response=60, seed=5, temperature=1.0)
    table = Requests.empty(8, 128)
    tokens = np.zeros((8, 128), np.int32)
    for row, request in enumerate(requests):
        tokens[row, : len(request.tokens)] = request.tokens
    column = lambda name, dtype: jnp.array([getattr(r, name) for r in requests], dtype)  # noqa: E731
    table = replace(
        table,
        arrival=jnp.arange(8),
        tokens=jnp.array(tokens),
        length=jnp.array([len(r.tokens) for r in requests]),
        max_new_tokens=column("max_new_tokens", jnp.int32),
        index=column("index", jnp.int32),
        sampling=table.sampling._replace(temperature=jnp.ones(8)),
    )
    state = init_state(
        config,
        table,
        group_size=samples,
        slots=slots,
        prompt_slots=slots if samples == 1 else 4,
        columns=16,
        max_new_tokens=64,
        dtype=jnp.float32,
    )
    return jax.jit(partial(generate, config, ring_sizes=[16, 32, 64])), state


@pytest.mark.parametrize(("samples", "slots"), [(1, 3), (3, 5)])
def test_a_whole_queue_in_one_compiled_program(
    config: ModelConfig, weights: Params, alone: Callable, samples: int, slots: int
) -> None:
    program, state = one_program(config, samples, slots)
    outputs = program(weights, state).outputs
    requests = random_requests(8, longest_prompt=100, longest_response=60, seed=5, temperature=1.0)
    for row, expected in enumerate(s for group in alone(requests, samples) for s in group):
        length = int(outputs.length[row])
        assert outputs.tokens[row, :length].tolist() == expected.tokens.tolist()
        np.testing.assert_allclose(outputs.logprobs[row, :length, 0], expected.logprobs, atol=1e-4)


def test_sampling_parameters_and_lengths_recompile_nothing(
    config: ModelConfig, weights: Params
) -> None:
    some = Scheduler(config, weights, slots=4)
    answers(some, random_requests(6, longest_prompt=100, longest_response=100, seed=1))
    compiled = some.programs.run._cache_size()
    for seed, options in enumerate(
        [{"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.0, "top_k": 5, "min_p": 0.1}, {}]
    ):
        requests = random_requests(9, longest_prompt=90, longest_response=100, seed=seed, **options)
        answers(some, [replace(r, stop_ids=(1, 2), seed=seed) for r in requests])
    assert len({slots for slots, _, _ in some.work.programs}) <= compiled
    assert some.programs.run._cache_size() == compiled


@pytest.mark.parametrize("prefix_width", [0, 64])
@pytest.mark.parametrize(("samples", "slots"), [(1, 6), (3, 6)])
def test_no_cache_is_copied_while_decoding(
    config: ModelConfig, weights: Params, samples: int, slots: int, prefix_width: int
) -> None:
    _, state = one_program(config, samples, slots)
    if prefix_width:
        state = replace(state, prefix=empty_cache(config, 1, prefix_width, jnp.float32))
    run = jax.jit(partial(engine.run, config), donate_argnums=1)
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
