"""Weights from where training keeps them to where decoding reads them (design decision 6)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding
from jax.typing import DTypeLike

from rmr1_jax.distributed.sharding_rules import DECODING_RULES, even_rules, shardings
from rmr1_jax.models.lora import merge
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params, logical_axes
from rmr1_jax.sampling.decode_loop import unstack_layers
from rmr1_jax.training.sharding_plan import ShardingPlan


def make_reshard(config: ModelConfig, sharding: ShardingPlan, dtype: DTypeLike) -> Any:
    """One compiled program, params -> params: a run's weights, as the engine wants them.

    Adapters are merged in, weights cast to `dtype`, split over `tensor` alone, layers taken apart.
    """
    return jax.jit(
        partial(_decoding_weights, config, dtype),
        out_shardings=decoding_shardings(config, sharding),
    )


def decoding_mesh(sharding: ShardingPlan) -> Mesh | None:
    """The mesh for an engine; None where there is but one device."""
    return None if sharding.mesh.size == 1 else sharding.mesh


def _decoding_weights(config: ModelConfig, dtype: DTypeLike, params: Params) -> Params:
    # Cast and taken apart where they are, so that only what decoding needs crosses the devices.
    return unstack_layers(config, merge(params), jnp.dtype(dtype))


def decoding_shardings(config: ModelConfig, sharding: ShardingPlan) -> Any:
    """Where the engine's weights lie: a tree like them, or one sharding for all."""
    if decoding_mesh(sharding) is None:
        # Committed to a device, not to a mesh of one: as is what an engine without a mesh returns.
        return SingleDeviceSharding(sharding.mesh.devices.flat[0])
    axes = logical_axes(config)
    layer = jax.tree.map(
        lambda names: names[1:], axes["layers"], is_leaf=lambda x: isinstance(x, tuple)
    )
    rules = even_rules(DECODING_RULES, {"vocab": config.vocab_size}, sharding.mesh.shape)
    placed = shardings({**axes, "layers": layer}, sharding.mesh, rules)
    return {**placed, "layers": (placed["layers"],) * config.num_layers}
