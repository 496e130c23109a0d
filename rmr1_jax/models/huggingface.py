"""Checkpoints out: Hugging Face directories and PEFT adapters, with all that lies beside weights.

Safetensors files are written here rather than by `safetensors.save_file`: that takes a whole shard
in memory, this one tensor, and it reports a full disk as what it is.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory

from rmr1_jax.errors import UserError
from rmr1_jax.io.atomic_write import replace_directory
from rmr1_jax.models.lora import TARGETS
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.safetensors_files import DTYPES, INDEX, parse_dtype
from rmr1_jax.models.weight_map import TENSORS, Tensor, count_parameters, flatten, tensors_of

# The system message that a model was trained to judge with, unless it is a built-in one.
PROMPT_FILE = "judge_prompt.txt"

# What makes up a tokenizer, as far as it exists.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)


class OutgoingTensor(NamedTuple):
    """A tensor to be written: everything but its values, and a call that makes those."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]


def save_huggingface(
    params: Mapping[str, Any],
    config: ModelConfig,
    directory: str | Path,
    *,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    tokenizer_from: str | Path | None = None,
    on_write: Callable[[int], None] = lambda size: None,
) -> None:
    """Writes a checkpoint that transformers and vLLM read, all or nothing, layer by layer.

    `dtype` defaults to that of the parameters. Tokenizer files, chat template and
    `generation_config.json` are copied from the directory `tokenizer_from`. `on_write` gets the
    number of parameters in each tensor written. Raises `UserError` if `directory` holds anything
    but an earlier export.
    """
    leaves = dict(flatten(params))
    stored = parse_dtype(dtype) if dtype else np.dtype(leaves["embed/embedding"].dtype)
    outgoing = {
        name: OutgoingTensor(
            name,
            tensor.foreign_shape(config),
            partial(_foreign_values, leaves[tensor.path], tensor, layer, config),
        )
        for tensor, layer in _in_file_order(config)
        for name in [tensor.huggingface.format(layer=layer)]
    }
    split = split_state_dict_into_shards_factory(
        outgoing,
        get_storage_size=lambda tensor: math.prod(tensor.shape) * stored.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=parse_size(max_shard_size),
    )
    with replace_directory(Path(directory), {"format": "huggingface"}) as temporary:
        write_sidecar_files(temporary, config, stored, tokenizer_from)
        (temporary / "README.md").write_text(_model_card(config, stored), encoding="utf-8")
        for file, names in split.filename_to_tensors.items():
            _write_safetensors(temporary / file, [outgoing[n] for n in names], stored, on_write)
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            write_json(temporary / INDEX, index)


def _in_file_order(config: ModelConfig) -> list[tuple[Tensor, int]]:
    """Embedding, each layer with all its tensors, final norm, head."""
    tensors = tensors_of(config)
    stacked = [tensor for tensor in tensors if tensor.stacked]
    layers = [(tensor, layer) for layer in range(config.num_layers) for tensor in stacked]
    alone = [(tensor, 0) for tensor in tensors if not tensor.stacked]
    return [alone[0], *layers, *alone[1:]]


@partial(jax.jit, static_argnames="stacked")
def _one_layer(leaf: jax.Array, layer: int, stacked: bool) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False) if stacked else leaf


def _foreign_values(leaf: Any, tensor: Tensor, layer: int, config: ModelConfig) -> np.ndarray:
    values = np.asarray(_one_layer(jnp.asarray(leaf), layer, tensor.stacked))
    shape = tensor.foreign_shape(config)
    return values.reshape(shape[::-1]).T if tensor.transposed else values.reshape(shape)


def _write_safetensors(
    file: Path,
    tensors: Sequence[OutgoingTensor],
    dtype: np.dtype,
    on_write: Callable[[int], None] = lambda size: None,
) -> None:
    """One file, of which memory holds one tensor at a time."""
    stored_as = next(name for name, known in DTYPES.items() if known == dtype)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape, _ in tensors:
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": stored_as, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as out:
        out.write(len(encoded).to_bytes(8, "little"))
        out.write(encoded)
        for tensor in tensors:
            values = np.ascontiguousarray(tensor.values(), dtype=dtype)
            out.write(values.reshape(-1).view(np.uint8).data)
            on_write(values.size)


def parse_size(text: str) -> int:
    """Bytes in a size such as "5GB" (powers of 1000) or "512MiB" (powers of 1024)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*", text, flags=re.IGNORECASE)
    size = 0
    if match:
        number, prefix, binary = match.groups()
        size = int(
            float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " ")
        )
    if size < 1:
        raise UserError(f"{text!r} is not a size. Write for example 5GB or 512MiB.")
    return size


def write_sidecar_files(
    directory: Path,
    config: ModelConfig,
    dtype: np.dtype,
    tokenizer_from: str | Path | None,
) -> None:
    """What lies beside the weights: config.json, generation_config.json and the tokenizer files.

    The generation config is that of `tokenizer_from`, else the token ids of the model config.
    Raises `UserError` if `tokenizer_from` holds no tokenizer.
    """
    described = config.to_hf(dtype=dtype.name)
    write_json(directory / "config.json", described)
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    token_ids = {key: described[key] for key in keys if described[key] is not None}
    write_json(directory / "generation_config.json", token_ids)
    if tokenizer_from is None:
        return
    source = Path(tokenizer_from)
    if not has_tokenizer(source):
        raise UserError(
            f"{source} holds no tokenizer (tokenizer.json). Name the directory that holds the "
            "tokenizer of this model."
        )
    for name in (*TOKENIZER_FILES, PROMPT_FILE, "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def has_tokenizer(directory: str | Path) -> bool:
    """Whether a directory holds the files of a tokenizer."""
    return any((Path(directory) / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented JSON, as Hugging Face writes its configs."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _model_card(config: ModelConfig, dtype: np.dtype) -> str:
    prompt = f"\nTrained to judge with the prompt `{config.prompt}`.\n" if config.prompt else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {config.model_type} model exported by rmr1_jax

{count_parameters(config):,} parameters, {config.num_layers} layers, stored as {dtype.name}.
{prompt}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIRECTORY", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
```

The license and the limits of use are those of the weights this was made from.
"""


def save_peft(directory: str | Path, params: Mapping[str, Any], *, base_model: str = "") -> None:
    """Writes adapters as the files that `peft.PeftModel.from_pretrained` reads, all or nothing.

    Args:
      directory: new, or one that an earlier export wrote.
      params: with adapters (`models/lora.py`); the rest of the tree is not needed.
      base_model: the model they were trained on, as the files name it: a directory or a hub name.

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
        _write_safetensors(temporary / "adapter_model.safetensors", tensors, dtype)


def _module(name: str) -> str:
    """The name of a projection in Hugging Face's modules, with {layer} to be filled in."""
    path, _ = TARGETS[name]
    kernel = next(tensor for tensor in TENSORS if tensor.path == f"{path}/kernel")
    return kernel.huggingface.removesuffix(".weight")


def _adapter_tensors(leaves: Mapping[str, Any], name: str) -> list[OutgoingTensor]:
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
