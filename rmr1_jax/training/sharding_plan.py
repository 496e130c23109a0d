"""Where a run's arrays lie: the mesh, the shardings of its state and batches, its first weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from rmr1_jax.config.mesh_config import parse_mesh
from rmr1_jax.distributed.hosts import part_here, to_devices
from rmr1_jax.distributed.mesh import check_mesh, make_mesh
from rmr1_jax.distributed.sharding_rules import (
    TRAINING_RULES,
    Rules,
    axis_sizes,
    even_rules,
    partition_spec,
    shardings,
)
from rmr1_jax.models.checkpoint import load_model
from rmr1_jax.models.lora import Lora, combine, random_adapters, split_trainable
from rmr1_jax.models.lora import logical_axes as lora_axes
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import (
    Params,
    logical_axes,
    parameter_shapes,
    random_params,
)
from rmr1_jax.ops.flash_attention import Split, flash_attention, on_chip_memory
from rmr1_jax.ops.packed_attention import PackedAttention, packed_attention
from rmr1_jax.training.optimizer import wide
from rmr1_jax.training.step import TrainState

Tree = Any


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


def first_params(
    model: str | Path | None,
    config: ModelConfig,
    sharding: ShardingPlan,
    *,
    dtype: str,
    seed: int,
    on_read: Callable[[int], None] = lambda size: None,
) -> Params:
    """The weights of a checkpoint, or random ones, in `dtype`, each device holding its part."""
    placed = sharding.of(logical_axes(config))
    if model:
        return load_model(model, dtype=dtype, shardings=placed, on_read=on_read)[1]
    make = jax.jit(
        partial(random_params, config, seed, param_dtype=np.dtype(dtype)), out_shardings=placed
    )
    return make()


def with_adapters(
    config: ModelConfig,
    params: Params,
    sharding: ShardingPlan,
    lora: Lora,
    *,
    dtype: str,
    seed: int,
) -> tuple[Params, Params]:
    """New adapters to train, and the rest: the model's weights with the adapters' scales."""
    placed = sharding.of(lora_axes(config, lora))
    adapters_placed, _ = split_trainable(placed)
    make = partial(random_adapters, config, lora, seed, np.dtype(dtype))
    adapters, scales = split_trainable(jax.jit(make)())
    scales = jax.device_put(scales, sharding.replicated)
    return jax.device_put(adapters, adapters_placed), combine(params, scales)


def state_shardings(
    params: Any, param_shardings: Any, optimizer: optax.GradientTransformation, rest: Any
) -> TrainState:
    """A `TrainState` of shardings: moments lie with their parameters, `rest` is for counters."""
    moments = jax.eval_shape(lambda p: optimizer.init(wide(p)), params)
    placed = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        moments,
        param_shardings,
        transform_non_params=lambda _: rest,
    )
    return TrainState(rest, param_shardings, placed, rest, rest)


def shapes_of(state: Any, placed: Any) -> Any:
    """`jax.ShapeDtypeStruct` leaves with shardings: what a restored state must be like."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        placed,
    )
