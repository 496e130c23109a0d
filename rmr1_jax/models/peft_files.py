"""Adapters out: the two files that `peft.PeftModel.from_pretrained(base, directory)` reads."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rmr1_jax.errors import UserError
from rmr1_jax.io.whole_directory import replace_directory
from rmr1_jax.models.huggingface import write_json
from rmr1_jax.models.lora import TARGETS
from rmr1_jax.models.safetensors_files import OutgoingTensor, write_shards
from rmr1_jax.models.weight_map import TENSORS, flatten

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def save_peft(
    directory: str | Path, params: Mapping[str, Any], *, base_model: str = "", model_card: str = ""
) -> None:
    """Writes the adapters in a parameter tree as PEFT files, all or nothing.

    Args:
      directory: new, or one that an earlier export wrote.
      params: with adapters (`models/lora.py`); the rest of the tree is not needed.
      base_model: what the files say that they were trained on: a directory or a hub name.
      model_card: the text of README.md; none is written where it is empty.

    Raises `UserError` where there are no adapters, or `directory` holds anything else.
    """
    leaves = dict(flatten(params))
    targets = [name for name, (path, _) in TARGETS.items() if f"{path}/adapter/a" in leaves]
    if not targets:
        raise UserError("there are no adapters to write as PEFT files: export the whole model.")
    first = f"{TARGETS[targets[0]][0]}/adapter"
    rank = leaves[f"{first}/a"].shape[-1]
    dtype = np.dtype(leaves[f"{first}/a"].dtype)
    scale = float(leaves[f"{first}/scale"][0])
    tensors = [tensor for name in targets for tensor in _tensors(leaves, name)]
    with replace_directory(Path(directory), {"format": "peft"}) as temporary:
        write_json(temporary / CONFIG, _config(targets, rank, scale * rank, base_model))
        write_shards(temporary, {WEIGHTS: tensors}, dtype)
        if model_card:
            (temporary / "README.md").write_text(model_card, encoding="utf-8")


def _config(targets: list[str], rank: int, alpha: float, base_model: str) -> dict[str, Any]:
    return {
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


def _module(name: str) -> str:
    """The name of a projection in Hugging Face's modules, with {layer} to be filled in."""
    path, _ = TARGETS[name]
    kernel = next(tensor for tensor in TENSORS if tensor.path == f"{path}/kernel")
    return kernel.huggingface.removesuffix(".weight")


def _tensors(leaves: Mapping[str, Any], name: str) -> list[OutgoingTensor]:
    """A and B of every layer as PyTorch linear maps: [r, in] and [out, r]."""
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
