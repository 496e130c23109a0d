"""Low-rank adapters: `y + scale * (x A) B` beside a frozen projection (LoRA, arXiv 2106.09685).

They live in the parameter tree, under `adapter` beside the kernel they adapt, and carry their
scale: the parameters alone are enough to compute, merge or export them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rmr1_jax.errors import UserError
from rmr1_jax.models import transformer
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.models.weight_map import flatten, nest
from rmr1_jax.ops.attention import matmul_precision

# The projections that can have an adapter, and how many of their kernel's axes (after L) are input.
TARGETS = {
    "query": ("layers/attention/query", 1),
    "key": ("layers/attention/key", 1),
    "value": ("layers/attention/value", 1),
    "output": ("layers/attention/output", 2),
    "gate": ("layers/mlp/gate", 1),
    "up": ("layers/mlp/up", 1),
    "down": ("layers/mlp/down", 1),
}


@dataclass(frozen=True)
class Lora:
    """Which projections get an adapter, of what rank; it is scaled by alpha / rank."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = tuple(TARGETS)


def parse_targets(text: str) -> tuple[str, ...]:
    """The projections that a line such as `query,value` names. Raises UserError."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in TARGETS]
    if unknown or not names or len(set(names)) < len(names):
        problem = f"there is no {unknown[0]!r}" if unknown else "name each once, and at least one"
        raise UserError(
            f"the projections for adapters are {text!r}: {problem}. "
            f"Choose from {','.join(TARGETS)}."
        )
    return names


def random_adapters(
    config: ModelConfig, lora: Lora, seed: int = 0, param_dtype: DTypeLike = jnp.float32
) -> Params:
    """New adapters as a nested dict, to be joined to a model's parameters by `combine`.

    Initialised as in PEFT: A is uniform within 1/sqrt(inputs) (Kaiming's, with a = sqrt(5)), and B
    is zero, so that the model is unchanged at first.
    """
    kernels = dict(flatten(transformer.parameter_shapes(config)))
    keys = dict(zip(TARGETS, jax.random.split(jax.random.key(seed), len(TARGETS)), strict=True))
    leaves = {}
    for name in lora.targets:
        path, inputs = TARGETS[name]
        layers, *shape = kernels[f"{path}/kernel"].shape
        bound = math.prod(shape[:inputs]) ** -0.5
        A = (layers, *shape[:inputs], lora.rank)
        leaves[f"{path}/adapter/a"] = jax.random.uniform(keys[name], A, param_dtype, -bound, bound)
        leaves[f"{path}/adapter/b"] = jnp.zeros((layers, lora.rank, *shape[inputs:]), param_dtype)
    return combine(nest(leaves), adapter_scales(config, lora))


def adapter_scales(config: ModelConfig, lora: Lora) -> Params:
    """The scale of the adapters, once per layer: what a model with adapters has beside A and B."""
    scale = jnp.full(config.num_layers, lora.alpha / lora.rank, jnp.float32)
    return nest({f"{TARGETS[name][0]}/adapter/scale": scale for name in lora.targets})


def logical_axes(config: ModelConfig, lora: Lora) -> Params:
    """The names of all axes of a model with adapters, as `transformer.logical_axes` without."""
    axes = dict(flatten(transformer.logical_axes(config)))
    for name in lora.targets:
        path, inputs = TARGETS[name]
        layers, *names = axes[f"{path}/kernel"]
        axes[f"{path}/adapter/a"] = (layers, *names[:inputs], "rank")
        axes[f"{path}/adapter/b"] = (layers, "rank", *names[inputs:])
        axes[f"{path}/adapter/scale"] = (layers,)
    return nest(axes)


def has_adapters(params: Mapping[str, Any]) -> bool:
    """Whether a parameter tree holds adapters."""
    return any(_is_trainable(path) for path, _ in flatten(params))


def split_trainable(params: Mapping[str, Any]) -> tuple[Params, Params]:
    """The matrices of the adapters, and all the rest, of a tree of any kind of leaf."""
    leaves = dict(flatten(params))
    adapters = {path: leaf for path, leaf in leaves.items() if _is_trainable(path)}
    return nest(adapters), nest({p: leaf for p, leaf in leaves.items() if p not in adapters})


def combine(*parts: Mapping[str, Any]) -> Params:
    """One tree of parts that have no leaf in common: the opposite of `split_trainable`."""
    return nest({path: leaf for part in parts for path, leaf in flatten(part)})


def merge(params: Mapping[str, Any]) -> Params:
    """The parameters of a plain model that computes the same: each adapter added to its kernel.

    Products and sums are fp32 and rounded once, to the dtype of the kernel.
    """
    leaves = dict(flatten(params))
    merged = {path: leaf for path, leaf in leaves.items() if "/adapter/" not in path}
    for path, _ in TARGETS.values():
        if f"{path}/adapter/a" in leaves:
            adapter = (leaves[f"{path}/adapter/{name}"] for name in ("a", "b", "scale"))
            merged[f"{path}/kernel"] = _merged(leaves[f"{path}/kernel"], *adapter)
    return nest(merged)


def _is_trainable(path: str) -> bool:
    return path.endswith(("/adapter/a", "/adapter/b"))


@jax.jit
def _merged(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    layers, rank = a.shape[0], a.shape[-1]
    a, b = (x.astype(jnp.float32) for x in (a, b))
    product = jnp.matmul(
        a.reshape(layers, -1, rank),
        b.reshape(layers, rank, -1),
        precision=matmul_precision(a.dtype),
    )
    change = (scale[:, None, None] * product).reshape(kernel.shape)
    return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
