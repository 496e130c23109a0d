"""Checkpoints of every format: recognise and load them, and write Orbax checkpoints.

An Orbax checkpoint is a self-contained directory: `weights/` (Orbax), `config.json`,
`generation_config.json` and the tokenizer files as in a Hugging Face checkpoint, and a marker file.
The directory of a training run is one too: it has `checkpoints/STEP/weights`, and the other files
in `model/`.
"""

import gc
import hashlib
import logging
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from rmr1_jax.errors import UserError
from rmr1_jax.io.atomic_write import read_marker, replace_directory
from rmr1_jax.models.gguf import GgufSource, gguf_config, write_gguf_tokenizer
from rmr1_jax.models.huggingface import (
    PROMPT_FILE,
    SafetensorsSource,
    has_tokenizer,
    parse_dtype,
    write_json,
    write_sidecar_files,
)
from rmr1_jax.models.lora import (
    Lora,
    adapter_scales,
    combine,
    merge,
    random_adapters,
    split_trainable,
)
from rmr1_jax.models.model_config import ModelConfig, load_hf_config, read_json
from rmr1_jax.models.weight_map import (
    Source,
    assemble,
    check_shapes,
    count_parameters,
    default_sharding,
    flatten,
    nest,
    tensors_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Format = Literal["huggingface", "gguf", "orbax", "adapters"]
WEIGHTS = "weights"
CHECKPOINTS, SIDECAR_FILES = "checkpoints", "model"
LORA = "lora.json"  # beside the tokenizer of a run whose checkpoints hold only adapters
ENDS = 1 << 16  # bytes that `fingerprint` reads at each end of a file


def recognise(path: str | Path) -> tuple[Format, Path]:
    """The format of a checkpoint, and its directory or GGUF file. Reads no weights."""
    path = Path(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(
                f"{path} is no checkpoint. Name a Hugging Face directory, an Orbax directory made "
                "by --stage=convert, or a .gguf file."
            )
        return "gguf", path
    if not path.exists():
        raise UserError(f"{path} does not exist. Name a checkpoint directory or a .gguf file.")
    marker = read_marker(path)
    if marker is not None and marker.get("format") == "orbax":
        return "orbax", path
    if (path / SIDECAR_FILES).is_dir() and (path / CHECKPOINTS).is_dir():
        path = _latest_checkpoint(path / CHECKPOINTS)
    if path.absolute().parent.name == CHECKPOINTS and (path / WEIGHTS).is_dir():
        return ("adapters" if (sidecar_files(path) / LORA).is_file() else "orbax"), path
    files = sorted(path.glob("*.gguf"))
    if not files or any(path.glob("*.safetensors")):
        return "huggingface", path
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{path} holds several GGUF files ({names}). Name one of them.")
    return "gguf", files[0]


def default_dtype() -> str:
    """The dtype to compute in by default: float32 on CPU, bfloat16 elsewhere."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def fingerprint(path: str | Path) -> str:
    """A SHA-256 that tells whether the checkpoint at a path is still the same one.

    It covers names, sizes and both ends of the files. Different weights differ there, and reading
    everything would take too long.
    """
    _, place = recognise(path)
    digest = hashlib.sha256()
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    if place.is_dir() and sidecar_files(place) != place:
        files += sorted(sidecar_files(place).rglob("*"))
    for file in files:
        if not file.is_file() or file.name.startswith("."):
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(ENDS))
            opened.seek(max(size - ENDS, 0))
            digest.update(opened.read(ENDS))
    return digest.hexdigest()


def _latest_checkpoint(directory: Path) -> Path:
    steps = [int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal()]
    if not steps:
        raise UserError(f"{directory} holds no whole checkpoint yet. Let the run reach its first.")
    return directory / str(max(steps))


def sidecar_files(place: Path) -> Path:
    """The directory of the files beside the weights; the checkpoints of a run share one."""
    parent = place.absolute().parent
    return parent.parent / SIDECAR_FILES if parent.name == CHECKPOINTS else place


def load_config(path: str | Path) -> ModelConfig:
    """The config of a checkpoint of any format. Reads no weights."""
    kind, place = recognise(path)
    if kind == "gguf":
        return gguf_config(place)
    place = sidecar_files(place)
    return ModelConfig.from_hf(load_hf_config(place), source=str(place / "config.json"))


def load_model(
    path: str | Path,
    *,
    dtype: str | None = None,
    shardings: Mapping[str, Any] | None = None,
    on_read: Callable[[int], None] = lambda size: None,
) -> tuple[ModelConfig, dict[str, Any]]:
    """Config and parameters (a nested dict of arrays) of a checkpoint of any format.

    The adapters of a LoRA run are merged into their model.

    Args:
      path: a Hugging Face directory, a GGUF file, an Orbax directory or that of a training run.
      dtype: "float32", "bfloat16" or "float16". By default the stored dtype; if tensors differ, the
        narrowest that holds them all; float32 for GGUF, which is dequantized.
      shardings: a tree that matches the parameters; by default everything is on one device. Each
        device receives only what it holds (see `assemble` for the host memory this takes).
      on_read: called with the number of parameters in each finished leaf.

    Raises one `UserError` that lists all missing, extra and misshapen tensors.
    """
    kind, place = recognise(path)
    if kind == "adapters":
        adapters, _, base = load_adapters(place)
        if not Path(base).exists():
            raise UserError(
                f"these adapters were trained on {base}, which is not there any more; put the "
                "model back, or export the adapters alone with --stage=convert --to=peft"
            )
        config, params = load_model(base, dtype=dtype, shardings=shardings, on_read=on_read)
        placed = jax.tree.map(lambda leaf: leaf.sharding, params)
        stored = params["embed"]["embedding"].dtype
        merged = jax.tree.map(lambda leaf: leaf.astype(stored), merge(combine(params, adapters)))
        return config, jax.device_put(merged, placed)
    if kind == "orbax":
        config, params = _load_orbax(place.absolute(), dtype, shardings)
        on_read(count_parameters(config))
        return config, params
    source: Source = SafetensorsSource(place) if kind == "huggingface" else GgufSource(place)
    target = parse_dtype(dtype) if dtype else source.dtype
    return source.config, assemble(source, target, shardings, on_read)


def stop_token_ids(path: str | Path) -> tuple[int, ...]:
    """The tokens that end an answer: those of generation_config.json, else those of the config."""
    kind, place = recognise(path)
    place = sidecar_files(place)
    file = place / "generation_config.json"
    listed = read_json(file).get("eos_token_id") if kind != "gguf" and file.is_file() else None
    if listed is None:
        return load_config(path).eos_token_ids
    described = load_hf_config(place) | {"eos_token_id": listed}
    return ModelConfig.from_hf(described, source=str(file)).eos_token_ids


def prompt_of(path: str | Path) -> str | None:
    """The judge prompt of a checkpoint: a file of its own, or a name in its config."""
    kind, place = recognise(path)
    file = sidecar_files(place) / PROMPT_FILE
    if kind != "gguf" and file.is_file():
        return str(file)
    return load_config(path).prompt or None


def load_tokenizer(path: str | Path) -> "tuple[PreTrainedTokenizerBase, tuple[int, ...]]":
    """The tokenizer of a checkpoint of any format, and the tokens that end an answer.

    Raises `UserError` if the tokenizer files are absent or damaged.
    """
    # transformers would advise installing torch, which is not used.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with tokenizer_directory(path) as directory:
        if not has_tokenizer(directory):
            raise UserError(
                f"{path} holds no tokenizer (tokenizer.json). Copy the model's tokenizer files "
                "there, or convert it again with --tokenizer=DIRECTORY."
            )
        import transformers

        # AutoTokenizer would import torch if it is installed, which is slow.
        known = (directory / "tokenizer.json").is_file()
        kind: Any = transformers.PreTrainedTokenizerFast if known else transformers.AutoTokenizer
        try:
            tokenizer = kind.from_pretrained(str(directory), local_files_only=True)
        except Exception as error:  # a damaged file can raise anything in the tokenizers library
            raise UserError(
                f"the tokenizer in {path} cannot be read ({_first_line(error)}). "
                "Download its files again."
            ) from error
    return tokenizer, stop_token_ids(path)


@contextmanager
def tokenizer_directory(path: str | Path) -> Iterator[Path]:
    """A directory with the tokenizer files of a checkpoint, temporary for GGUF."""
    kind, place = recognise(path)
    if kind != "gguf":
        yield sidecar_files(place)
        return
    with tempfile.TemporaryDirectory() as directory:
        write_gguf_tokenizer(place, directory)
        yield Path(directory)


def save_weights(
    directory: str | Path,
    params: Mapping[str, Any],
    config: ModelConfig,
    *,
    tokenizer_from: str | Path | None = None,
) -> None:
    """Write a self-contained Orbax checkpoint, all or nothing.

    Tokenizer files, chat template and `generation_config.json` are copied from the directory
    `tokenizer_from`. Raises `UserError` if `directory` holds anything but an earlier result.
    """
    stored = np.dtype(params["embed"]["embedding"].dtype)
    with replace_directory(Path(directory), {"format": "orbax"}) as temporary:
        write_sidecar_files(temporary, config, stored, tokenizer_from)
        try:
            with quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(temporary / WEIGHTS, dict(params))
        except Exception as error:  # TensorStore turns every failure into a ValueError
            # Close open files, which would otherwise recreate the directory after its removal.
            traceback.clear_frames(error.__traceback__)
            gc.collect()
            raise _write_failure(error) from error


def _load_orbax(
    directory: Path, dtype: str | None, shardings: Mapping[str, Any] | None
) -> tuple[ModelConfig, dict[str, Any]]:
    config = load_config(directory)
    wanted = parse_dtype(dtype) if dtype else None
    placed = dict(flatten(shardings)) if shardings is not None else {}
    try:
        with quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
            stored = _stored_arrays(checkpointer, directory)
            shapes = {tensor.path: tensor.shape(config) for tensor in tensors_of(config)}
            check_shapes(
                f"the weights in {directory} do not fit its config.json",
                shapes,
                {path: tuple(array.shape) for path, array in stored.items()},
            )
            target = {
                path: jax.ShapeDtypeStruct(
                    shape,
                    wanted or stored[path].dtype,
                    sharding=placed[path] if placed else default_sharding(),
                )
                for path, shape in shapes.items()
            }
            leaves = dict(flatten(checkpointer.restore(directory / WEIGHTS, nest(target))))
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax and TensorStore raise a dozen types for damaged files
        raise UserError(
            f"the weights in {directory} are damaged or incomplete ({_first_line(error)}). "
            "Convert the original checkpoint again."
        ) from error
    return config, nest({path: leaves[path] for path in target})


def write_lora(directory: Path, lora: Lora, base: str) -> None:
    """Write down the adapters of a run and their base model, beside its tokenizer."""
    about = {"base": str(Path(base).absolute()), "rank": lora.rank, "alpha": lora.alpha}
    write_json(directory / LORA, about | {"targets": list(lora.targets)})


def load_adapters(place: Path) -> tuple[dict[str, Any], Lora, str]:
    """The adapters of a LoRA checkpoint with their scale, and the path of their base model."""
    about = read_json(sidecar_files(place) / LORA)
    lora = Lora(about["rank"], about["alpha"], tuple(about["targets"]))
    config = load_config(place)
    matrices, _ = split_trainable(jax.eval_shape(lambda: random_adapters(config, lora)))
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=default_sharding()),
        matrices,
    )
    with quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
        restored: dict[str, Any] = checkpointer.restore(place.absolute() / WEIGHTS, target)
    return combine(restored, adapter_scales(config, lora)), lora, str(about["base"])


def _stored_arrays(checkpointer: ocp.StandardCheckpointer, directory: Path) -> dict[str, Any]:
    """The shape and dtype of each stored array, by our paths."""
    found = checkpointer.metadata(directory / WEIGHTS)
    if found is None or found.item_metadata is None:
        raise UserError(
            f"{directory} holds no weights that Orbax can read. "
            "Convert the original checkpoint again."
        )
    return dict(flatten(found.item_metadata.tree))


@contextmanager
def quiet_orbax() -> Iterator[None]:
    """Suppress what Orbax and its threads print about errors that it also raises."""
    absl = logging.getLogger("absl")
    level, hook = absl.level, sys.unraisablehook
    absl.setLevel(logging.CRITICAL)
    sys.unraisablehook = partial(_without_abandoned, hook)
    try:
        yield
        # Not restored after a failure, since abandoned work may report an error much later.
        sys.unraisablehook = hook
    finally:
        absl.setLevel(level)


def _without_abandoned(
    report: Callable[[Any], object], unraisable: "sys.UnraisableHookArgs"
) -> None:
    abandoned = ("Event loop is closed", "Encountered error while reading array index")
    if not str(unraisable.exc_value).startswith(abandoned):
        report(unraisable)


def _write_failure(error: Exception) -> Exception:
    """The error of the operating system behind a TensorStore error, if there is one."""
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number is None:
        return UserError(f"the weights cannot be written ({_first_line(error)}).")
    return OSError(int(number[1]), os.strerror(int(number[1])))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(". See full")[0][:200]
