"""Low-rank adapters: `y + scale * (x A) B` beside a frozen projection (LoRA, arXiv 2106.09685).

They are in the parameter tree, as `adapter` beside the kernel they adapt, with their scale. The
parameters alone are therefore enough to compute, merge or export them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rmr1_jax.errors import UserError
from rmr1_jax.io.atomic_write import replace_directory
from rmr1_jax.models import transformer
from rmr1_jax.models.huggingface import OutgoingTensor, write_json, write_safetensors
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.models.weight_map import TENSORS, flatten, nest
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
    """The rank of adapters, the projections that get one, and alpha (the scale is alpha / rank)."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = tuple(TARGETS)


def parse_targets(text: str) -> tuple[str, ...]:
    """The projections in a list such as `query,value`. Raises `UserError`."""
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
    """New adapters as a nested dict, to be combined with a model's parameters by `combine`.

    Initialised as in PEFT: A is uniform within 1/sqrt(inputs) (Kaiming with a = sqrt(5)), and B is
    zero, so that the model is unchanged at first.
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
    """The scales of the adapters, one per layer, beside A and B in the tree."""
    scale = jnp.full(config.num_layers, lora.alpha / lora.rank, jnp.float32)
    return nest({f"{TARGETS[name][0]}/adapter/scale": scale for name in lora.targets})


def logical_axes(config: ModelConfig, lora: Lora) -> Params:
    """Like `transformer.logical_axes`, for a model with adapters."""
    axes = dict(flatten(transformer.logical_axes(config)))
    for name in lora.targets:
        path, inputs = TARGETS[name]
        layers, *names = axes[f"{path}/kernel"]
        axes[f"{path}/adapter/a"] = (layers, *names[:inputs], "rank")
        axes[f"{path}/adapter/b"] = (layers, "rank", *names[inputs:])
        axes[f"{path}/adapter/scale"] = (layers,)
    return nest(axes)


def split_trainable(params: Mapping[str, Any]) -> tuple[Params, Params]:
    """The matrices of the adapters, and the rest of the tree, with any kind of leaf."""
    leaves = dict(flatten(params))
    adapters = {path: leaf for path, leaf in leaves.items() if _is_trainable(path)}
    return nest(adapters), nest({p: leaf for p, leaf in leaves.items() if p not in adapters})


def combine(*parts: Mapping[str, Any]) -> Params:
    """One tree from parts without a common leaf; the inverse of `split_trainable`."""
    return nest({path: leaf for part in parts for path, leaf in flatten(part)})


def merge(params: Mapping[str, Any]) -> Params:
    """The parameters of an equivalent plain model, with each adapter added to its kernel.

    Products and sums are fp32, and rounded once to the dtype of the kernel.
    """
    leaves = dict(flatten(params))
    merged = {path: leaf for path, leaf in leaves.items() if "/adapter/" not in path}
    for path, _ in TARGETS.values():
        if f"{path}/adapter/a" in leaves:
            adapter = (leaves[f"{path}/adapter/{name}"] for name in ("a", "b", "scale"))
            merged[f"{path}/kernel"] = _merged(leaves[f"{path}/kernel"], *adapter)
    return nest(merged)


def save_peft(directory: str | Path, params: Mapping[str, Any], *, base_model: str = "") -> None:
    """Write adapters as the files that `peft.PeftModel.from_pretrained` reads, all or nothing.

    Args:
      directory: new, or the result of an earlier export.
      params: with adapters; the rest of the tree is not needed.
      base_model: the model they were trained on, a directory or a hub name.

    Raises `UserError` if there are no adapters, or `directory` holds anything else.
    """
    leaves = dict(flatten(params))
    targets = [name for name, (path, _) in TARGETS.items() if f"{path}/adapter/a" in leaves]
    if not targets:
        raise UserError("there are no adapters to write as PEFT files: export the whole model.")
    first = f"{TARGETS[targets[0]][0]}/adapter"
    rank = leaves[f"{first}/a"].shape[-1]
    alpha = float(leaves[f"{first}/scale"][0]) * rank
    adapter_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model or None,
        "r": rank,
        "lora_alpha": float(f"{alpha:.7g}"),  # the scale is fp32
        "lora_dropout": 0.0,
        "target_modules": [_module(name).split(".")[-1] for name in targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
    }
    tensors = [tensor for name in targets for tensor in _adapter_tensors(leaves, name)]
    with replace_directory(Path(directory), {"format": "peft"}) as temporary:
        write_json(temporary / "adapter_config.json", adapter_config)
        dtype = np.dtype(leaves[f"{first}/a"].dtype)
        write_safetensors(temporary / "adapter_model.safetensors", tensors, dtype)


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


def _module(name: str) -> str:
    """The Hugging Face module of a projection, with a {layer} placeholder."""
    path, _ = TARGETS[name]
    kernel = next(tensor for tensor in TENSORS if tensor.path == f"{path}/kernel")
    return kernel.huggingface.removesuffix(".weight")


def _adapter_tensors(leaves: Mapping[str, Any], name: str) -> list[OutgoingTensor]:
    """A and B of every layer as weights of PyTorch linear layers: [r, in] and [out, r]."""
    path, _ = TARGETS[name]
    a, b = leaves[f"{path}/adapter/a"], leaves[f"{path}/adapter/b"]
    layers, rank = a.shape[0], a.shape[-1]
    a, b = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
    return [
        OutgoingTensor(
            f"base_model.model.{_module(name).format(layer=layer)}.lora_{which}.weight",
            matrix.shape[:0:-1],
            partial(_transposed_layer, matrix, layer),
        )
        for layer in range(layers)
        for which, matrix in (("A", a), ("B", b))
    ]


def _transposed_layer(stacked: jax.Array, layer: int) -> np.ndarray:
    return np.asarray(stacked[layer]).T
