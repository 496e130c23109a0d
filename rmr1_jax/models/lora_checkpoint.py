"""Checkpoints of a LoRA run: they hold adapters only, and name the model that these belong to."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rmr1_jax.errors import UserError
from rmr1_jax.models.huggingface import write_json
from rmr1_jax.models.lora import (
    Lora,
    adapter_scales,
    combine,
    merge,
    random_adapters,
    split_trainable,
)
from rmr1_jax.models.model_config import ModelConfig, read_json
from rmr1_jax.models.weight_map import default_sharding

LORA = "lora.json"


def write_lora(directory: Path, lora: Lora, base: str) -> None:
    """Note, beside the tokenizer of a run, what its adapters are and which model they belong to."""
    about = {"base": str(Path(base).absolute()), "rank": lora.rank, "alpha": lora.alpha}
    write_json(directory / LORA, about | {"targets": list(lora.targets)})


def read_lora(directory: Path) -> tuple[Lora, str]:
    """What `write_lora` wrote: the adapters' shape, and the path of their model."""
    about = read_json(directory / LORA)
    return Lora(about["rank"], about["alpha"], tuple(about["targets"])), str(about["base"])


def load_adapters(weights: Path, config: ModelConfig, lora: Lora) -> dict[str, Any]:
    """The adapters that a run stored in `weights`, with their scale. Raises what Orbax raises."""
    matrices, _ = split_trainable(jax.eval_shape(lambda: random_adapters(config, lora)))
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=default_sharding()),
        matrices,
    )
    with ocp.StandardCheckpointer() as checkpointer:
        restored: dict[str, Any] = checkpointer.restore(weights.absolute(), target)
    return combine(restored, adapter_scales(config, lora))


def load_lora_checkpoint(
    adapters: Mapping[str, Any], base: str, load_base: Callable[[str], tuple[ModelConfig, Any]]
) -> tuple[ModelConfig, dict[str, Any]]:
    """Config and parameters of the model with its adapters merged in. Raises UserError."""
    if not Path(base).exists():
        raise UserError(
            f"these adapters were trained on {base}, which is not there any more; put the model "
            "back, or export the adapters alone with --stage=convert --to=peft"
        )
    config, params = load_base(base)
    placed = jax.tree.map(lambda leaf: leaf.sharding, params)
    dtype = params["embed"]["embedding"].dtype
    with_adapters = combine(params, adapters)
    merged = jax.tree.map(lambda leaf: leaf.astype(dtype), merge(with_adapters))
    return config, jax.device_put(merged, placed)
