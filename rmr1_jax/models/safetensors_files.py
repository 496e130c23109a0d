"""Hugging Face checkpoints in: what their safetensors files hold, and reading parts of it."""

from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from rmr1_jax.errors import UserError
from rmr1_jax.models.model_config import ModelConfig, load_hf_config, read_json
from rmr1_jax.models.weight_map import Tensor, check_shapes, foreign_shapes

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

    Raises `UserError`, naming all tensors that are missing, extra or misshapen at once, if the
    files do not fit config.json, and if a file is absent or damaged.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "config.json"
        self.config = ModelConfig.from_hf(load_hf_config(directory), source=str(path))
        self.stored = _read_headers(directory)
        expected = foreign_shapes(self.config, "huggingface")
        check_shapes(
            f"the weights in {directory} do not fit its config.json",
            expected,
            # What does no harm is not looked at, unless the config asks for it.
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
        """A part of a tensor. The file is opened for this one read, since pages of a mapped file
        count as memory of the process until it is closed."""
        name = tensor.huggingface.format(layer=layer)
        with safe_open(self.stored[name].file, framework="numpy") as shard:
            part: np.ndarray = shard.get_slice(name)[window]
        return part


class _Stored(NamedTuple):
    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: "BF16", "F32", ...


def _harmless(name: str) -> bool:
    # Tied models may store the head twice, old exports the rotary frequencies, which we compute.
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
