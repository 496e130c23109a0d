"""Hugging Face checkpoints: reading and writing their safetensors files and what lies beside them.

Safetensors files are written here rather than by `safetensors.save_file`, which needs memory for a
whole shard instead of one tensor, and hides that a disk is full.
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
import ml_dtypes
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open

from rmr1_jax.errors import UserError
from rmr1_jax.io.atomic_write import replace_directory
from rmr1_jax.models.model_config import ModelConfig, load_hf_config, read_json
from rmr1_jax.models.weight_map import (
    Tensor,
    check_shapes,
    count_parameters,
    flatten,
    foreign_shapes,
    tensors_of,
)

# The system message that a judge was trained with, unless it is a built-in one.
PROMPT_FILE = "judge_prompt.txt"

# The files of a tokenizer; a checkpoint has some of them.
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

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def parse_dtype(name: str) -> np.dtype:
    """The dtype that parameters may be stored in, by its name."""
    for dtype in DTYPES.values():
        if dtype.name == name:
            return dtype
    raise UserError(f"dtype {name!r} is not supported. Choose bfloat16, float16 or float32.")


class SafetensorsSource:
    """The weights of a Hugging Face directory, for `assemble`.

    Raises one `UserError` that lists all missing, extra and misshapen tensors if the files do not
    fit config.json, and a `UserError` if a file is absent or damaged.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "config.json"
        self.config = ModelConfig.from_hf(load_hf_config(directory), source=str(path))
        self.stored = _read_headers(directory)
        expected = foreign_shapes(self.config, "huggingface")
        check_shapes(
            f"the weights in {directory} do not fit its config.json",
            expected,
            # Harmless tensors are ignored unless the config asks for them.
            {
                name: tensor.shape
                for name, tensor in self.stored.items()
                if name in expected or not _harmless(name)
            },
            unsupported=[
                f"{name} ({self.stored[name].dtype})"
                for name in expected
                if name in self.stored and self.stored[name].dtype not in DTYPES
            ],
        )

    @property
    def dtype(self) -> np.dtype:
        """The narrowest dtype that holds every tensor exactly."""
        kinds = {tensor.dtype for tensor in self.stored.values() if tensor.dtype in DTYPES}
        return DTYPES[kinds.pop()] if len(kinds) == 1 else DTYPES["F32"]

    def read(self, tensor: Tensor, layer: int, window: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor.

        The file is opened for each read, since pages of a mapped file count as memory of the
        process until it is closed.
        """
        name = tensor.huggingface.format(layer=layer)
        with safe_open(self.stored[name].file, framework="numpy") as shard:
            part: np.ndarray = shard.get_slice(name)[window]
        return part


class _Stored(NamedTuple):
    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: "BF16", "F32", ...


def _harmless(name: str) -> bool:
    # Tied models may store the head twice, and old exports the rotary frequencies.
    return name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")


def _read_headers(directory: Path) -> dict[str, _Stored]:
    stored: dict[str, _Stored] = {}
    for file in _files(directory):
        try:
            with safe_open(file, framework="numpy") as shard:
                for name in shard.keys():  # noqa: SIM118 (not a mapping)
                    part = shard.get_slice(name)
                    stored[name] = _Stored(file, tuple(part.get_shape()), part.get_dtype())
        except SafetensorError as error:
            raise UserError(
                f"{file} is truncated or corrupt ({error}). Download or copy it again."
            ) from error
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error
    return stored


def _files(directory: Path) -> list[Path]:
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    index = directory / INDEX
    if not index.is_file():
        raise UserError(_why_no_weights(directory))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map. Download it again.")
    names = sorted({str(name) for name in weight_map.values()})
    absent = [name for name in names if Path(name).name != name or not (directory / name).is_file()]
    if absent:
        raise UserError(
            f"{index} names {', '.join(absent)}, which {directory} does not hold. "
            "Download the missing files, or the whole checkpoint, again."
        )
    return [directory / name for name in names]


def _why_no_weights(directory: Path) -> str:
    if (directory / "adapter_config.json").is_file():
        return (
            f"{directory} holds a LoRA adapter, not a whole model. Merge it into its base model "
            "(peft: merge_and_unload, then save_pretrained) and name that directory."
        )
    if any(directory.glob("pytorch_model*.bin*")):
        return (
            f"{directory} holds pytorch_model.bin only, which is not read because it can run code. "
            "Convert it once where torch is installed: "
            "transformers.AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)."
        )
    return (
        f"{directory} holds no weights: neither {SINGLE} nor {INDEX}. Name the directory of a "
        "complete Hugging Face checkpoint."
    )


class OutgoingTensor(NamedTuple):
    """A tensor to be written, whose values are computed on demand."""

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
    """Write a checkpoint that transformers and vLLM read, all or nothing, layer by layer.

    `dtype` defaults to that of the parameters. Tokenizer files, chat template and
    `generation_config.json` are copied from the directory `tokenizer_from`. `on_write` is called
    with the number of parameters in each tensor written. Raises `UserError` if `directory` holds
    anything but an earlier export.
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
            write_safetensors(temporary / file, [outgoing[n] for n in names], stored, on_write)
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


def write_safetensors(
    file: Path,
    tensors: Sequence[OutgoingTensor],
    dtype: np.dtype,
    on_write: Callable[[int], None] = lambda size: None,
) -> None:
    """Write one file, with one tensor at a time in memory."""
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
    """Write the files beside the weights: config, generation config and tokenizer files.

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
