"""Groups from the weights of a run: what the trainer would say, resharded in one program."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmr1_jax.config import Sampling
from rmr1_jax.config.mesh_config import MeshShape
from rmr1_jax.data.prompt_set import Prompt
from rmr1_jax.distributed.mesh import make_mesh
from rmr1_jax.distributed.sharding_rules import TRAINING_RULES, even_rules
from rmr1_jax.errors import UserError
from rmr1_jax.models.lora import Lora, combine, merge, random_adapters
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params, logical_axes, random_params, with_params
from rmr1_jax.ops.cross_entropy import target_logprobs
from rmr1_jax.rl.rollout import Rollout
from rmr1_jax.sampling.scheduler import Sample
from rmr1_jax.training.sharding_plan import ShardingPlan, make_reshard
from tests.processes import run_processes
from tests.sampling.conftest import CONFIG as LONG_CONFIG
from tests.sampling.conftest import VOCAB

CONFIG = replace(LONG_CONFIG, max_position=128)
GROUP, LONGEST, ROW = 4, 24, 256
STOP_IDS = (3, 11, 20, 31, 42, 53, 64, 75)  # a response of random weights has about 12 tokens
MESHES = [
    (1, 1, 1),
    pytest.param((1, 8, 1), marks=pytest.mark.devices8),
    pytest.param((2, 2, 2), marks=pytest.mark.devices8),
]
COMPILED = "/jax/core/compile/backend_compile_duration"


def placement_on(shape: tuple[int, ...]) -> ShardingPlan:
    mesh = make_mesh(MeshShape(*shape), jax.devices()[: math.prod(shape)])
    rules = even_rules(TRAINING_RULES, {"vocab": VOCAB}, mesh.shape)
    return ShardingPlan(mesh, rules, {**rules, "sequence": ()})


def placed_params(sharding: ShardingPlan, seed: int = 1) -> Params:
    """The weights of a trainer. Every process makes the same."""
    make = partial(random_params, CONFIG, seed)
    return jax.jit(make, out_shardings=sharding.of(logical_axes(CONFIG)))()


def make_rollout(sharding: ShardingPlan, model: ModelConfig = CONFIG, **options: Any) -> Rollout:
    defaults: dict[str, Any] = {
        "dtype": jnp.float32,
        "group_size": GROUP,
        "slots": 4,
        "max_new_tokens": LONGEST,
        "stop_ids": STOP_IDS,
        "sampling": Sampling(temperature=1.0),
    }
    return Rollout(model, sharding, **defaults | options)


@cache
def rollout_on(shape: tuple[int, ...]) -> Rollout:
    """One for all tests of a mesh: they only differ in weights and prompts."""
    rollout = make_rollout(placement_on(shape))
    rollout.reshard(placed_params(placement_on(shape)))
    return rollout


def random_prompts(lengths: Sequence[int] = (2, 30, 77, 120)) -> list[Prompt]:
    rng = np.random.default_rng(5)
    return [Prompt(f"p{n}", rng.integers(0, VOCAB, n), "A") for n in lengths]


def tokens_of(groups: list[list[Sample]]) -> list[list[list[int]]]:
    return [[sample.tokens.tolist() for sample in group] for group in groups]


@contextmanager
def compilations() -> Iterator[list[float]]:
    """The seconds of each program that is compiled within."""
    seen: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED:
            seen.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


# ---- what is sampled


def trainer_logprobs(
    sharding: ShardingPlan, params: Params, sequences: list[tuple[np.ndarray, np.ndarray]]
) -> list[np.ndarray]:
    """Of the responses of (prompt, response) pairs, two in a row, by the trainer's forward."""
    shape = (len(sequences) // 2, ROW)
    tokens, positions, segments, at, targets = (np.zeros(shape, np.int32) for _ in range(5))
    valid = np.zeros(shape, bool)
    where = []
    for number, (prompt, response) in enumerate(sequences):
        row, second = divmod(number, 2)
        start, slot = (ROW // 2 * second,) * 2
        whole = np.concatenate([prompt, response])
        span, slots = slice(start, start + len(whole)), slice(slot, slot + len(response))
        tokens[row, span] = whole
        positions[row, span] = np.arange(len(whole))
        segments[row, span] = 1 + second
        at[row, slots] = start + len(prompt) - 1 + np.arange(len(response))
        targets[row, slots] = response
        valid[row, slots] = True
        where.append((row, slots))

    @jax.jit
    def compute(params: Params, *arrays: jax.Array) -> jax.Array:
        tokens, positions, segments, at, targets, valid = arrays
        model = with_params(CONFIG, params, dtype=jnp.float32)
        hidden = model(tokens, positions, segments, constrain=sharding.constrain)
        learnt = jnp.take_along_axis(hidden, at[..., None], axis=1)
        head, layout = model.head()
        return target_logprobs(
            learnt,
            head,
            targets,
            valid,
            layout=layout,
            batch_shards=sharding.row_groups,
            constrain=sharding.constrain,
        )[0]

    found = np.asarray(compute(params, tokens, positions, segments, at, targets, valid))
    return [found[index] for index in where]


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_sampler_and_trainer_agree_on_every_log_probability(shape: tuple[int, ...]) -> None:
    sharding = placement_on(shape)
    params = placed_params(sharding)
    prompts = random_prompts()
    groups = rollout_on(shape).sample(prompts, indices=range(4), seed=7)
    pairs = [
        (prompt.tokens, sample.tokens)
        for prompt, group in zip(prompts, groups, strict=True)
        for sample in group
    ]
    expected = trainer_logprobs(sharding, params, pairs)
    samples = [sample for group in groups for sample in group]
    assert len(samples) == 4 * GROUP
    assert len({len(sample.tokens) for sample in samples}) > 4  # of several lengths
    for sample, logprobs in zip(samples, expected, strict=True):
        np.testing.assert_allclose(sample.logprobs, logprobs, atol=1e-4)
        np.testing.assert_allclose(sample.logprobs, sample.sampled_logprobs, atol=1e-5)


@pytest.fixture
def on_one_device() -> Rollout:
    return rollout_on((1, 1, 1))


def test_tokens_depend_on_prompt_index_and_seed_and_on_nothing_else(on_one_device: Rollout) -> None:
    prompts, indices = random_prompts(), [40, 7, 300, 12]
    first = tokens_of(on_one_device.sample(prompts, indices=indices, seed=1))
    assert tokens_of(on_one_device.sample(prompts, indices=indices, seed=1)) == first
    fewer = on_one_device.sample(prompts[:0:-1], indices=indices[:0:-1], seed=1)
    assert tokens_of(fewer) == first[:0:-1]
    other_seed = tokens_of(on_one_device.sample(prompts, indices=indices, seed=2))
    other_index = tokens_of(on_one_device.sample(prompts, indices=[1, 2, 3, 4], seed=1))
    assert all(a != b for a, b in zip(first, other_seed, strict=True))
    assert all(a != b for a, b in zip(first, other_index, strict=True))


def test_a_response_ends_where_the_context_does(on_one_device: Rollout) -> None:
    room = 3
    prompts = random_prompts([CONFIG.max_position - room, 5])
    short, long = on_one_device.sample(prompts, indices=[0, 1], seed=0)
    assert max(len(sample.tokens) for sample in short) == room < LONGEST
    assert {sample.finish_reason for sample in short} >= {"length"}
    assert max(len(sample.tokens) for sample in long) > room


def test_a_prompt_that_fills_the_context_is_named(on_one_device: Rollout) -> None:
    with pytest.raises(UserError, match=r"p128: its 128 tokens leave no room for a response"):
        on_one_device.sample(random_prompts([5, 128]), indices=[0, 1], seed=0)


def test_progress_tells_tokens_and_finished_groups(on_one_device: Rollout) -> None:
    seen: list[tuple[int, int]] = []
    groups = on_one_device.sample(
        random_prompts(), indices=range(4), seed=3, on_progress=lambda *now: seen.append(now)
    )
    tokens = sum(len(sample.tokens) for group in groups for sample in group)
    assert seen == sorted(seen) and seen[-1] == (tokens, 4)
    assert on_one_device.work.live_row_steps == tokens


def test_a_prompt_is_computed_once_for_its_group(on_one_device: Rollout) -> None:
    on_one_device.sample(random_prompts(), indices=range(4), seed=0)
    assert on_one_device.work.prefill_tokens == 4 * 128  # one chunk each, not one a sample


@pytest.mark.parametrize("shape", [MESHES[0], MESHES[2]], ids=str)
def test_what_all_prompts_begin_with_is_computed_once(shape: tuple[int, ...]) -> None:
    sharding, model = placement_on(shape), replace(CONFIG, max_position=512)
    rng = np.random.default_rng(11)
    told = rng.integers(0, VOCAB, 300)
    prompts = [
        Prompt(f"p{n}", np.concatenate([told, rng.integers(0, VOCAB, n)]), "A") for n in (2, 30, 77)
    ]
    found, computed = [], []
    for prefix in ((), told.tolist()):
        rollout = make_rollout(sharding, model, prefix=prefix)
        rollout.reshard(placed_params(sharding))
        found.append(rollout.sample(prompts, indices=range(3), seed=7))
        computed.append(rollout.work.prefill_tokens)
    assert tokens_of(found[0]) == tokens_of(found[1])
    for alone, sharing in zip(*map(chain.from_iterable, found), strict=True):
        np.testing.assert_allclose(alone.logprobs, sharing.logprobs, atol=1e-4)
    groups = math.prod(shape[:2])
    # Chunks of 256 positions, and of 128 where prompts are no longer.
    assert computed == [3 * 512, groups * 512 + 3 * 128]


# ---- on which weights


@pytest.mark.parametrize("shape", [MESHES[0], MESHES[2]], ids=str)
def test_resharding_is_one_program_and_new_weights_compile_nothing(shape: tuple[int, ...]) -> None:
    sharding, rollout = placement_on(shape), rollout_on(shape)
    params = [placed_params(sharding, seed) for seed in (1, 2)]
    new = make_rollout(sharding)
    with compilations() as seen:
        new.reshard(params[0])
    assert len(seen) == 1 and new.reshard_seconds > 0

    def steps() -> list[Any]:
        found = []
        for step, weights in enumerate(params):
            rollout.reshard(weights)
            indices = range(4 * step, 4 * step + 4)
            found.append(tokens_of(rollout.sample(random_prompts(), indices=indices, seed=1)))
        return found

    first = steps()
    with compilations() as seen:
        assert steps() == first
    assert not seen
    assert first[0] != first[1]
    rollout.reshard(params[0])


def test_adapters_are_merged_in(on_one_device: Rollout) -> None:
    sharding = placement_on((1, 1, 1))
    params = placed_params(sharding)
    adapters = jax.tree.map(lambda leaf: leaf + 0.05, random_adapters(CONFIG, Lora(2, 4.0)))
    adapted = combine(params, jax.device_put(adapters, sharding.replicated))
    found = []
    for weights in (adapted, merge(adapted), params):
        on_one_device.reshard(weights)
        samples = on_one_device.sample(random_prompts(), indices=range(4), seed=1)
        found.append(tokens_of(samples))
    assert found[0] == found[1] != found[2]


@pytest.mark.devices8
def test_weights_cross_the_devices_in_the_dtype_of_decoding() -> None:
    sharding = placement_on((2, 2, 2))
    # float16, since XLA gathers bfloat16 on a CPU as float32.
    reshard: Any = make_reshard(CONFIG, sharding, jnp.float16)
    text = reshard.lower(placed_params(sharding)).compile().as_text()
    gathered = re.findall(r"= (\w+)\[\S* (?:all-gather|all-to-all|collective-permute)\(", text)
    assert set(gathered) == {"f16"} and "all-reduce" not in text


@pytest.mark.devices8
def test_no_weight_is_gathered_while_decoding() -> None:
    """Weights that training splits over fsdp are whole, or split over tensor, before the loop."""
    programs = rollout_on((2, 2, 2)).engine.programs
    for leaf in jax.tree.leaves(programs.weights):
        assert not {"data", "fsdp"} & set(jax.tree.leaves(tuple(leaf.sharding.spec)))
    kernel = programs.weights["layers"][0]["mlp"]["gate"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[1] == CONFIG.intermediate_size // 2
    state = programs.new_state(entries=4, prompts=1, width=128, max_new_tokens=128, slots=1)
    text = programs.run.lower(programs.weights, state, 8, 0).compile().as_text()
    assert re.search(r" while\(", text)
    assert not re.findall(r" (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text)


# ---- in several processes

SCRIPT = """
import json, sys
from tests.rl.test_rollout import rolled_out
print(json.dumps(rolled_out(json.loads(sys.argv[1]))))
"""


def rolled_out(shape: Sequence[int]) -> list[list[tuple[list[int], list[float], str | None]]]:
    """Two rollouts of more prompts than fit at once: what the host does must agree, too."""
    sharding = placement_on(tuple(shape))
    rollout = make_rollout(sharding, slots=8)
    found = []
    for step in range(2):
        rollout.reshard(placed_params(sharding, seed=1 + step))
        lengths = [2 + 17 * n % 119 for n in range(12)]
        indices = range(12 * step, 12 * (step + 1))
        found += rollout.sample(random_prompts(lengths), indices=indices, seed=1)
    return [
        [(s.tokens.tolist(), s.logprobs.tolist(), s.finish_reason) for s in group]
        for group in found
    ]


@pytest.mark.slow
@pytest.mark.devices8
@pytest.mark.parametrize(("shape", "devices"), [((2, 2, 2), 4), ((1, 1, 2), 1)], ids=str)
def test_two_processes_sample_what_one_does(shape: tuple[int, ...], devices: int) -> None:
    expected = json.loads(json.dumps(rolled_out(shape)))
    first, second = (
        json.loads(text.splitlines()[-1])
        for text in run_processes(SCRIPT, 2, devices, arguments=[json.dumps(shape)])
    )
    assert first == second
    for group, wanted in zip(first, expected, strict=True):
        for (tokens, logprobs, reason), sample in zip(group, wanted, strict=True):
            assert (tokens, reason) == (sample[0], sample[2])
            np.testing.assert_allclose(logprobs, sample[1], atol=1e-5)
