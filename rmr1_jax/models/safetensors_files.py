"""Safetensors files: what a directory of them holds, reading parts of it, writing in a stream."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from rmr1_jax.errors import UserError
from rmr1_jax.models.model_config import read_json

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is, and what the header of its file says about it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: "BF16", "F32", ...

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_headers(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint, by its name. Reads headers only.

    Raises `UserError` where there is no checkpoint, a shard is absent, or a file is damaged.
    """
    stored: dict[str, StoredTensor] = {}
    for file in _files(directory):
        try:
            with safe_open(file, framework="numpy") as shard:
                for name in shard.keys():  # noqa: SIM118 (not a mapping)
                    part = shard.get_slice(name)
                    stored[name] = StoredTensor(file, tuple(part.get_shape()), part.get_dtype())
        except SafetensorError as error:
            raise UserError(
                f"{file} is truncated or corrupt ({error}). Download or copy it again."
            ) from error
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error
    return stored


def read_window(stored: StoredTensor, name: str, window: tuple[slice, ...]) -> np.ndarray:
    """A rectangular part of a tensor, copied to the host.

    The file is opened for this one read, since pages of a mapped file count as memory of the
    process until it is closed.
    """
    with safe_open(stored.file, framework="numpy") as shard:
        part: np.ndarray = shard.get_slice(name)[window]
    return part


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


@dataclass(frozen=True)
class OutgoingTensor:
    """A tensor to be written: everything but its values, and a call that makes those."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]


def plan_shards(
    tensors: Sequence[OutgoingTensor], dtype: np.dtype, max_bytes: int
) -> dict[str, list[OutgoingTensor]]:
    """File name -> the tensors it will hold, in order; a tensor is never split."""
    shards: list[list[OutgoingTensor]] = [[]]
    used = 0
    for tensor in tensors:
        size = math.prod(tensor.shape) * dtype.itemsize
        if shards[-1] and used + size > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    total = len(shards)
    return {f"model-{i:05}-of-{total:05}.safetensors": s for i, s in enumerate(shards, start=1)}


def write_shards(
    directory: Path,
    shards: dict[str, list[OutgoingTensor]],
    dtype: np.dtype,
    on_write: Callable[[int], None] = lambda size: None,
) -> None:
    """Writes the shards and, if there are several, their index. Holds one tensor at a time.

    `on_write` hears the number of parameters in each tensor written.
    """
    stored_as = next(name for name, known in DTYPES.items() if known == dtype)
    total = 0
    for file, tensors in shards.items():
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor in tensors:
            end = offset + math.prod(tensor.shape) * dtype.itemsize
            header[tensor.name] = {
                "dtype": stored_as,
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        with (directory / file).open("wb") as out:
            out.write(len(encoded).to_bytes(8, "little"))
            out.write(encoded)
            for tensor in tensors:
                values = np.ascontiguousarray(tensor.values(), dtype=dtype)
                out.write(values.reshape(-1).view(np.uint8).data)
                on_write(values.size)
        total += offset
    if len(shards) > 1:
        weight_map = {tensor.name: file for file, tensors in shards.items() for tensor in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


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
