"""The same tokens on one device and on eight simulated ones, in several meshes."""

import jax
import jax.numpy as jnp
import pytest

from rmr1_jax.models.config import ModelConfig
from rmr1_jax.models.transformer import Params, logical_axes, parameter_shapes
from rmr1_jax.parallel.mesh import MeshShape, make_mesh
from rmr1_jax.parallel.rules import DECODING_RULES, axis_sizes, even_rules, shardings
from rmr1_jax.sampling.driver import Engine
from rmr1_jax.sampling.engine import unstack_layers
from tests.sampling.conftest import random_requests
from tests.sampling.test_engine import answers, texts


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    "shape", [(8, 1, 1), (2, 4, 1), (1, 1, 2), (2, 2, 2)], ids=lambda shape: str(shape)
)
def test_any_mesh_gives_the_tokens_of_one_device(
    config: ModelConfig, params: Params, weights: Params, shape: tuple[int, ...], samples: int
) -> None:
    requests = random_requests(12, longest_response=40, seed=9, temperature=1.0)
    expected = texts(answers(Engine(config, weights, slots=4, group_size=samples), requests))
    size = MeshShape(*shape)
    mesh = make_mesh(size, jax.devices()[: shape[0] * shape[1] * shape[2]])
    axes = logical_axes(config)
    sizes = axis_sizes(axes, parameter_shapes(config))
    placement = shardings(axes, mesh, even_rules(DECODING_RULES, sizes, mesh.shape))
    placed = unstack_layers(config, jax.device_put(params, placement), jnp.float32)
    sharded = Engine(config, placed, slots=8, group_size=samples, mesh=mesh)
    assert texts(answers(sharded, requests)) == expected
    heads = sharded.weights["layers"][0]["attention"]["query"]["kernel"].sharding
    assert heads.shard_shape((32, 4, 16)) == (32, 4 // shape[2], 16)
