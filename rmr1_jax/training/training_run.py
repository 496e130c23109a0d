"""Where a run of either training stage starts: its weights, adapters and sidecar files."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from rmr1_jax.config import GrpoConfig, SftConfig
from rmr1_jax.errors import UserError
from rmr1_jax.io.progress import bar
from rmr1_jax.judging import JudgePrompt
from rmr1_jax.models.checkpoint import (
    SIDECAR_FILES,
    default_dtype,
    load_model,
    tokenizer_directory,
    write_lora,
)
from rmr1_jax.models.huggingface import PROMPT_FILE, has_tokenizer, write_sidecar_files
from rmr1_jax.models.lora import Lora, combine, parse_targets, random_adapters, split_trainable
from rmr1_jax.models.lora import logical_axes as lora_axes
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params, logical_axes, random_params
from rmr1_jax.models.weight_map import count_parameters
from rmr1_jax.training.sharding_plan import ShardingPlan

TrainingConfig = SftConfig | GrpoConfig


def lora_of(config: TrainingConfig) -> Lora | None:
    """The adapters that are asked for. Raises UserError."""
    if not config.lora.rank:
        return None
    return Lora(config.lora.rank, config.lora.alpha, parse_targets(config.lora.targets))


def starting_point(
    config: TrainingConfig,
    model: ModelConfig,
    sharding: ShardingPlan,
    lora: Lora | None,
    dtype: str,
) -> tuple[Params, Params]:
    """What is trained, and what stays as it is (nothing, without adapters); placed."""
    # Weights that are not trained need no more than what they are computed in.
    kept = dtype if lora else config.optimizer.param_dtype
    params = first_params(config.model, model, sharding, dtype=kept, seed=config.seed)
    if lora is None:
        return params, {}
    return with_adapters(
        model, params, sharding, lora, dtype=config.optimizer.param_dtype, seed=config.seed
    )


def dtype_of(config: TrainingConfig) -> str:
    """What is computed in: as asked for, else as the machine likes it."""
    return config.dtype or default_dtype()


def write_model_sidecar_files(
    config: TrainingConfig, model: ModelConfig, prompt: JudgePrompt, lora: Lora | None
) -> None:
    """What makes every checkpoint of the run one that can be judged with and exported, if it is not
    there yet. One process of the run writes it, and the others wait."""
    directory = Path(config.workdir) / SIDECAR_FILES
    if jax.process_index() == 0 and not (directory / "config.json").is_file():
        _write_sidecar_files(config, directory, model, prompt, lora)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("sidecar_files of the model")


def _write_sidecar_files(
    config: TrainingConfig,
    directory: Path,
    model: ModelConfig,
    prompt: JudgePrompt,
    lora: Lora | None,
) -> None:
    directory.mkdir(exist_ok=True)
    if lora:
        write_lora(directory, lora, config.model)
    if config.model:
        with tokenizer_directory(config.model) as tokenizer:
            if not has_tokenizer(tokenizer):
                raise UserError(
                    f"--model={config.model} holds no tokenizer (tokenizer.json); copy the "
                    "model's tokenizer files there"
                )
            write_sidecar_files(directory, model, jax.numpy.dtype("float32"), tokenizer)
    else:
        from rmr1_jax.toy_task import write_tokenizer

        write_tokenizer(directory)
        write_sidecar_files(directory, model, jax.numpy.dtype("float32"), None)
    if not prompt.is_built_in:
        (directory / PROMPT_FILE).write_text(prompt.system or "", encoding="utf-8")


def first_params(
    model: str | Path | None,
    config: ModelConfig,
    sharding: ShardingPlan,
    *,
    dtype: str,
    seed: int,
) -> Params:
    """The weights of a checkpoint, or random ones, in `dtype`, each device holding its part."""
    placed = sharding.of(logical_axes(config))
    if model:
        quiet = jax.process_index() != 0
        with bar("reading weights", count_parameters(config), quiet=quiet) as read:
            return load_model(model, dtype=dtype, shardings=placed, on_read=read.advance)[1]
    make = jax.jit(
        partial(random_params, config, seed, param_dtype=np.dtype(dtype)), out_shardings=placed
    )
    return make()


def with_adapters(
    config: ModelConfig,
    params: Params,
    sharding: ShardingPlan,
    lora: Lora,
    *,
    dtype: str,
    seed: int,
) -> tuple[Params, Params]:
    """New adapters to train, and the rest: the model's weights with the adapters' scales."""
    placed = sharding.of(lora_axes(config, lora))
    adapters_placed, _ = split_trainable(placed)
    make = partial(random_adapters, config, lora, seed, np.dtype(dtype))
    adapters, scales = split_trainable(jax.jit(make)())
    scales = jax.device_put(scales, sharding.replicated)
    return jax.device_put(adapters, adapters_placed), combine(params, scales)
