"""The same tokens on one device and on eight simulated ones, in several meshes."""

import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

from rmr1_jax.config.mesh_config import MeshShape
from rmr1_jax.distributed.mesh import make_mesh
from rmr1_jax.distributed.sharding_rules import DECODING_RULES, axis_sizes, even_rules, shardings
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params, logical_axes, parameter_shapes
from rmr1_jax.sampling.decode_loop import unstack_layers
from rmr1_jax.sampling.scheduler import Request, Scheduler
from tests.sampling.conftest import random_requests
from tests.sampling.test_decode_loop import answers, computed_once, requests_with_prefix, texts

pytestmark = [pytest.mark.devices8, pytest.mark.usefixtures("never_compact")]


def scheduler_on(mesh: Mesh, config: ModelConfig, params: Params, samples: int) -> Scheduler:
    axes = logical_axes(config)
    sizes = axis_sizes(axes, parameter_shapes(config))
    sharding = shardings(axes, mesh, even_rules(DECODING_RULES, sizes, mesh.shape))
    placed = unstack_layers(config, jax.device_put(params, sharding), jnp.float32)
    return Scheduler(config, placed, slots=8, group_size=samples, mesh=mesh)


@pytest.mark.parametrize(
    ("shape", "samples"),
    [
        ((8, 1, 1), 1),
        ((2, 2, 2), 3),
        pytest.param((1, 1, 2), 1, marks=pytest.mark.nightly),
        pytest.param((2, 4, 1), 3, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_any_mesh_gives_the_tokens_of_one_device(
    scheduler_of: Callable[..., Scheduler],
    config: ModelConfig,
    params: Params,
    shape: tuple[int, ...],
    samples: int,
) -> None:
    requests = random_requests(12, longest_response=40, seed=9, temperature=1.0)
    expected = texts(answers(scheduler_of(5, samples), requests))
    mesh = make_mesh(MeshShape(*shape), jax.devices()[: math.prod(shape)])
    assert texts(answers(scheduler_on(mesh, config, params, samples), requests)) == expected


def test_no_data_group_waits_for_another(config: ModelConfig, params: Params) -> None:
    """One group has a long response early, and the other one several of half the length."""
    lengths = [120 if index == 1 else 5 if index % 2 else 60 for index in range(8)]
    requests = [Request([1, 2, 3 + index], n, index=index) for index, n in enumerate(lengths)]
    some = scheduler_on(make_mesh(MeshShape(2, 1, 1), jax.devices()[:2]), config, params, samples=1)
    found = answers(some, requests)
    assert [len(sample.tokens) for [sample] in found] == lengths
    assert some.work.steps == max(lengths)


@pytest.mark.parametrize(
    ("shape", "samples"),
    [((2, 2, 2), 3), pytest.param((8, 1, 1), 1, marks=pytest.mark.nightly)],
    ids=str,
)
def test_every_data_group_computes_a_common_prefix(
    scheduler_of: Callable[..., Scheduler],
    config: ModelConfig,
    params: Params,
    shape: tuple[int, ...],
    samples: int,
) -> None:
    requests, prefix = requests_with_prefix(300)
    whole = scheduler_of(5, samples)
    expected = texts(answers(whole, requests, prefix=prefix))
    some = scheduler_on(make_mesh(MeshShape(*shape)), config, params, samples)
    assert texts(answers(some, requests, prefix=prefix)) == expected
    more = (some.programs.groups - 1) * computed_once(prefix)
    assert some.work.prefill_tokens == whole.work.prefill_tokens + more


def test_heads_are_split_and_weights_are_not_gathered_in_the_decode_loop(
    config: ModelConfig, params: Params
) -> None:
    mesh = make_mesh(MeshShape(2, 2, 2))
    programs = scheduler_on(mesh, config, params, samples=3).programs
    state = programs.new_state(entries=4, prompts=4, width=128, max_new_tokens=128, slots=2)
    for cache in (*state.prompts, *state.responses):
        for leaf in cache:
            rows, heads, *rest = leaf.shape
            assert leaf.sharding.shard_shape(leaf.shape) == (rows // 4, heads // 2, *rest)
    compiled = programs.run.lower(programs.weights, state, 8, 0).compile()
    text = compiled.as_text()
    assert not re.findall(r" (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
    # Two sums over the tensor axis a layer, in prefill and in decoding: nothing else crosses.
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) <= 2 * 2 * config.num_layers
