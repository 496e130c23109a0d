"""Hugging Face checkpoints in and out: safetensors, config, tokenizer files, model card."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmr1_jax.errors import UserError
from rmr1_jax.io.whole_directory import replace_directory
from rmr1_jax.models.model_config import ModelConfig, load_hf_config
from rmr1_jax.models.safetensors_files import (
    DTYPES,
    OutgoingTensor,
    StoredTensor,
    parse_size,
    plan_shards,
    read_headers,
    read_window,
    write_shards,
)
from rmr1_jax.models.shape_check import check_shapes
from rmr1_jax.models.weight_map import Tensor, assemble, count_parameters, flatten, tensors_of

# The system message that a model was trained to judge with, where it is none of the built-in ones.
PROMPT_FILE = "judge_prompt.txt"

# What makes up a tokenizer, where it exists.
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


def load_huggingface(
    directory: str | Path,
    *,
    dtype: str | None = None,
    shardings: Mapping[str, Any] | None = None,
    on_read: Callable[[int], None] = lambda size: None,
) -> tuple[ModelConfig, dict[str, Any]]:
    """The config and the parameters (a nested dict of arrays) of a Hugging Face checkpoint.

    `dtype` is "float32", "bfloat16" or "float16"; by default that of the files, and where tensors
    differ, the narrowest that holds them all. `shardings` is a matching tree of shardings; each
    device is sent only what it holds (see `assemble` for the host memory this takes). `on_read`
    hears the number of parameters in each finished leaf. Raises `UserError`, naming all that is
    missing, extra or misshapen at once.
    """
    directory = Path(directory)
    source = directory / "config.json"
    config = ModelConfig.from_hf(load_hf_config(directory), source=str(source))
    stored = read_headers(directory)
    _refuse_other_tensors(config, stored, directory)
    target = stored_dtype(stored) if not dtype else parse_dtype(dtype)
    return config, assemble(config, _Files(stored), target, shardings, on_read)


def parse_dtype(name: str) -> np.dtype:
    """The dtype that parameters may be stored in, by its name."""
    for dtype in DTYPES.values():
        if dtype.name == name:
            return dtype
    raise UserError(f"dtype {name!r} is not supported. Choose bfloat16, float16 or float32.")


def stored_dtype(stored: Mapping[str, StoredTensor]) -> np.dtype:
    """The narrowest dtype that holds every tensor of a checkpoint exactly."""
    kinds = {tensor.dtype for tensor in stored.values() if tensor.dtype in DTYPES}
    return DTYPES[kinds.pop()] if len(kinds) == 1 else DTYPES["F32"]


class _Files:
    """Reads windows of tensors from safetensors files."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self.stored = stored

    def read(self, tensor: Tensor, layer: int, window: tuple[slice, ...]) -> np.ndarray:
        name = tensor.huggingface.format(layer=layer)
        return read_window(self.stored[name], name, window)


def _refuse_other_tensors(
    config: ModelConfig, stored: Mapping[str, StoredTensor], directory: Path
) -> None:
    expected = {
        tensor.huggingface.format(layer=layer): tensor.foreign_shape(config)
        for tensor in tensors_of(config)
        for layer in tensor.layers(config)
    }
    # What does no harm is not looked at, unless the config asks for it.
    found = {
        name: tensor.shape
        for name, tensor in stored.items()
        if name in expected or not _harmless(name)
    }
    check_shapes(
        f"the weights in {directory} do not fit its config.json",
        expected,
        found,
        unsupported=[
            f"{name} ({stored[name].dtype})"
            for name in expected
            if name in stored and stored[name].dtype not in DTYPES
        ],
    )


def _harmless(name: str) -> bool:
    # Tied models may store the head twice, old exports the rotary frequencies, which we compute.
    return name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")


def save_huggingface(
    params: Mapping[str, Any],
    config: ModelConfig,
    directory: str | Path,
    *,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    tokenizer_from: str | Path | None = None,
    generation_config: Mapping[str, Any] | None = None,
    model_card: str | None = None,
    on_write: Callable[[int], None] = lambda size: None,
) -> None:
    """Writes a checkpoint that transformers and vLLM read, all or nothing, layer by layer.

    `dtype` defaults to that of the parameters. Tokenizer files and chat template are copied from
    the directory `tokenizer_from`, and so is `generation_config.json` unless `generation_config` is
    given. Raises `UserError` where `directory` holds anything but an earlier export.
    """
    leaves = dict(flatten(params))
    stored = parse_dtype(dtype) if dtype else np.dtype(leaves["embed/embedding"].dtype)
    outgoing = [
        OutgoingTensor(
            tensor.huggingface.format(layer=layer),
            tensor.foreign_shape(config),
            partial(_foreign_values, leaves[tensor.path], tensor, layer, config),
        )
        for tensor, layer in _in_file_order(config)
    ]
    shards = plan_shards(outgoing, stored, parse_size(max_shard_size))
    with replace_directory(Path(directory), {"format": "huggingface"}) as temporary:
        write_sidecar_files(temporary, config, stored, tokenizer_from, generation_config)
        card = _model_card(config, stored) if model_card is None else model_card
        (temporary / "README.md").write_text(card, encoding="utf-8")
        write_shards(temporary, shards, stored, on_write)


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


def write_sidecar_files(
    directory: Path,
    config: ModelConfig,
    dtype: np.dtype,
    tokenizer_from: str | Path | None,
    generation_config: Mapping[str, Any] | None = None,
) -> None:
    """What lies beside the weights: config.json, generation_config.json and the tokenizer files.

    The generation config is the given one, else that of `tokenizer_from`, else the token ids of the
    model config. Raises `UserError` where `tokenizer_from` holds no tokenizer.
    """
    described = config.to_hf(dtype=dtype.name)
    write_json(directory / "config.json", described)
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    token_ids = {key: described[key] for key in keys if described[key] is not None}
    write_json(directory / "generation_config.json", generation_config or token_ids)
    if tokenizer_from is None:
        return
    source = Path(tokenizer_from)
    if not has_tokenizer(source):
        raise UserError(
            f"{source} holds no tokenizer (tokenizer.json). Name the directory that holds the "
            "tokenizer of this model."
        )
    also = [] if generation_config else ["generation_config.json"]
    for name in (*TOKENIZER_FILES, PROMPT_FILE, *also):
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
