"""Training attends by the kernels of whatever its mesh is made of, here or elsewhere."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rmr1_jax.data.packed_batch import Batch
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import logical_axes, parameter_shapes, with_params
from rmr1_jax.ops.packed_attention import packed_attention
from rmr1_jax.training.nll import nll
from rmr1_jax.training.sharding_plan import ShardingPlan, make_sharding_plan
from tests.topologies import devices_or_skip

pytestmark = pytest.mark.devices8

CONFIG = ModelConfig(
    model_type="qwen2",
    vocab_size=256,
    hidden_size=256,
    intermediate_size=512,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    max_position=512,
    tie_embeddings=True,
)


def placement_on(devices: Any) -> ShardingPlan:
    return make_sharding_plan(CONFIG, "fsdp=2,tensor=2", sequence_parallel=False, devices=devices)


def test_cpus_keep_the_block_algorithm() -> None:
    assert placement_on(jax.devices()[:4]).attention is packed_attention


def test_the_objective_compiles_for_tpus_with_their_kernels() -> None:
    devices = devices_or_skip("v5e:2x2")
    sharding = placement_on(devices)
    params = jax.tree.map(
        lambda leaf, placed: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=placed),
        parameter_shapes(CONFIG),
        sharding.of(logical_axes(CONFIG)),
    )
    rows = NamedSharding(sharding.mesh, PartitionSpec(("data", "fsdp")))
    of = lambda dtype: jax.ShapeDtypeStruct((2, 300), dtype, sharding=rows)  # noqa: E731
    integers = [of(jnp.int32)] * 5
    micro = Batch(*integers, of(jnp.float32), of(jnp.bool_))  # type: ignore[call-arg]
    objective = partial(
        nll,
        remat="full",
        constrain=sharding.constrain,
        attention=sharding.attention,
        batch_shards=sharding.row_groups,
    )

    def loss(params: Any, micro: Batch) -> Any:
        return objective(with_params(CONFIG, params, dtype="bfloat16"), micro, jnp.float32(1))[0]

    program = jax.jit(jax.grad(loss)).lower(params, micro).compile().as_text() or ""
    for kernel in ("flash_forward", "flash_backward"):
        assert f"{kernel}/pallas_call" in program
