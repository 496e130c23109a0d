"""Where a run's arrays lie: the mesh, the shardings of batches and weights, and the way of the
weights from training to decoding (design decision 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jax.typing import DTypeLike
from jaxtyping import Array

from rmr1_jax.config.mesh_config import parse_mesh
from rmr1_jax.distributed.hosts import part_here, to_devices
from rmr1_jax.distributed.mesh import check_mesh, make_mesh
from rmr1_jax.distributed.sharding_rules import (
    DECODING_RULES,
    TRAINING_RULES,
    Rules,
    axis_sizes,
    even_rules,
    partition_spec,
    shardings,
)
from rmr1_jax.models.lora import merge
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params, logical_axes, parameter_shapes
from rmr1_jax.ops.flash_attention import Split, flash_attention, on_chip_memory
from rmr1_jax.ops.packed_attention import PackedAttention, packed_attention
from rmr1_jax.sampling.decode_loop import unstack_layers


@dataclass(frozen=True)
class ShardingPlan:
    """The mesh of a run, and what is split over which of its axes."""

    mesh: Mesh
    parameters: Rules
    activations: Rules

    @property
    def row_groups(self) -> int:
        """Into how many parts the rows of a micro-batch are split."""
        return int(self.mesh.shape["data"] * self.mesh.shape["fsdp"])

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Of leaves [S, R, ...]: rows are split, micro-batches follow one another."""
        return NamedSharding(self.mesh, PartitionSpec(None, ("data", "fsdp")))

    def of(self, axes: Any) -> Any:
        """Shardings of parameters from the tree of their logical axes."""
        return shardings(axes, self.mesh, self.parameters)

    def constrain(self, x: Array, axes: tuple[str | None, ...]) -> Array:
        """An activation, placed by the logical names of its axes."""
        spec = partition_spec(axes, self.activations)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def objective_options(self, remat: str) -> dict[str, Any]:
        """What every objective is told of the mesh it is computed on."""
        return {
            "remat": remat,
            "constrain": self.constrain,
            "attention": self.attention,
            "batch_shards": self.row_groups,
        }

    @property
    def attention(self) -> PackedAttention:
        """What is fastest on the mesh' devices, which need not be of this machine."""
        device = self.mesh.devices.flat[0]
        if device.platform != "tpu":
            return packed_attention
        split = Split(self.mesh, self.activations["batch"], self.activations["heads"])
        return partial(flash_attention, split=split, vmem=on_chip_memory(device.device_kind))

    @cached_property
    def rows_here(self) -> tuple[int, int]:
        """Which part of a micro-batch's rows this process builds, of how many: those that its
        devices hold. Where `tensor` spans processes, several build the same part."""
        return part_here(self.batch, axis=1)

    @property
    def compiler_options(self) -> dict[str, str] | None:
        """For programs that train. On TPU, by default, products with weights that are split over
        fsdp become as many partial ones, which are added up in bf16 through the chip's memory."""
        if self.mesh.devices.flat[0].platform != "tpu":
            return None
        return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}

    def put_batch(self, batch: Any) -> Any:
        """This process' rows [S, R / parts, ...] (`rows_here`) as one array over all devices."""
        if self.rows_here[1] == 1:
            return self.put_whole(batch)
        put = partial(jax.make_array_from_process_local_data, self.batch)
        return jax.tree.map(lambda leaf: put(np.ascontiguousarray(leaf)), batch)

    def put_whole(self, batch: Any) -> Any:
        """The same for a batch [S, R, ...] that every process has whole."""
        return to_devices(batch, self.batch)


def make_sharding_plan(
    config: ModelConfig,
    mesh: str,
    *,
    sequence_parallel: bool,
    devices: Sequence[jax.Device] | None = None,
) -> ShardingPlan:
    """The plan that a line such as "fsdp=-1,tensor=2" asks for, over `devices` (default: all
    there are). Raises UserError."""
    sizes = axis_sizes(logical_axes(config), parameter_shapes(config))
    devices = jax.devices() if devices is None else devices
    shape = check_mesh(
        parse_mesh(mesh), num_devices=len(devices), sizes=sizes, rules=TRAINING_RULES
    )
    device_mesh = make_mesh(shape, devices)
    parameters = even_rules(TRAINING_RULES, sizes, device_mesh.shape)
    activations = {**parameters, "sequence": ("tensor",) if sequence_parallel else ()}
    return ShardingPlan(device_mesh, parameters, activations)


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
