"""What the training stages have in common: where a run starts, what it leaves beside its
checkpoints, and how it goes from the latest of them to its end."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils

from rmr1_jax.config import GrpoConfig, SftConfig
from rmr1_jax.data import read_preferences
from rmr1_jax.data.preference_store import ExampleStore
from rmr1_jax.distributed.hosts import log_primary
from rmr1_jax.errors import UserError
from rmr1_jax.io.progress import Bar, bar
from rmr1_jax.judging import JudgePrompt, Preference
from rmr1_jax.models.checkpoint import (
    CHECKPOINTS,
    SIDECAR_FILES,
    default_dtype,
    tokenizer_directory,
    write_lora,
)
from rmr1_jax.models.huggingface import PROMPT_FILE, has_tokenizer, write_sidecar_files
from rmr1_jax.models.lora import Lora, parse_targets
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.models.weight_map import count_parameters
from rmr1_jax.training.loop import Outcome
from rmr1_jax.training.metrics import MetricsLog
from rmr1_jax.training.run_checkpoints import RunCheckpoints
from rmr1_jax.training.sharding_plan import ShardingPlan, first_params, with_adapters
from rmr1_jax.training.training_progress import TrainingProgress
from rmr1_jax.training.validation import VerdictCheck

TrainingConfig = SftConfig | GrpoConfig


class Run(Protocol):
    """A run of a training stage (`training.sft_trainer.Sft`, `rl.trainer.Grpo`)."""

    steps: int

    def resume(self, checkpoints: RunCheckpoints) -> int: ...
    def train(
        self, checkpoints: RunCheckpoints, log: MetricsLog | None, progress: TrainingProgress
    ) -> Outcome: ...


def train(
    config: TrainingConfig, run: Run, goes_on: bool, draw: Callable[[Path], Path | None]
) -> int:
    """From the latest checkpoint, or the start, to the end; says where everything lies.

    `draw` makes a picture of the run in a directory. Returns the exit status.
    """
    workdir, speaks = Path(config.workdir), jax.process_index() == 0
    checkpoints = RunCheckpoints(workdir, keep=config.checkpoint.keep, warn=log_primary)
    try:
        done = run.resume(checkpoints)
        if goes_on:
            log_primary(f"going on after step {done} of {run.steps}")
        log = None
        if speaks:
            settings = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
            log = MetricsLog(workdir, after=done or -1, config=settings)
        try:
            with TrainingProgress(steps=run.steps, done=done, quiet=not speaks) as progress:
                outcome = run.train(checkpoints, log, progress)
        finally:
            if log:
                log.close()
        if speaks:
            report(config, outcome, checkpoints, draw(workdir), run.steps)
    finally:
        checkpoints.close()
    return 0 if outcome.stopped_by is None else 128 + outcome.stopped_by


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
    with reading(model) as read:
        params = first_params(
            config.model or None,
            model,
            sharding,
            # Weights that are not trained need no more than what they are computed in.
            dtype=dtype if lora else config.optimizer.param_dtype,
            seed=config.seed,
            on_read=read.advance,
        )
    if lora is None:
        return params, {}
    return with_adapters(
        model,
        params,
        sharding,
        lora,
        dtype=config.optimizer.param_dtype,
        seed=config.seed,
    )


def dtype_of(config: TrainingConfig) -> str:
    """What is computed in: as asked for, else as the machine likes it."""
    return config.dtype or default_dtype()


def verdict_check(
    config: TrainingConfig,
    model: ModelConfig,
    tokenizer: Any,
    prompt: JudgePrompt,
    stop_ids: Sequence[int],
    sharding: ShardingPlan,
    traces: str,
) -> VerdictCheck | None:
    """What judges the validation pairs, if there are any; its traces go to that folder of the run.

    Raises UserError.
    """
    pairs = validation_pairs(config)
    if not pairs:
        return None
    return VerdictCheck(
        model,
        tokenizer,
        prompt,
        stop_ids,
        pairs,
        sharding,
        dtype_of(config),
        config.validation.max_new_tokens,
        Path(config.workdir) / traces,
    )


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


def validation_pairs(config: TrainingConfig) -> list[Preference]:
    """Labelled pairs that the model is asked to judge. Raises UserError."""
    path, number = config.validation.judge, config.validation.pairs
    if not path or not number or not config.validation.every:
        return []
    if Path(path).is_dir():
        split = ExampleStore(path).split("validation")
        some = (split[index].preference for index in range(min(len(split), number)))
        pairs = [pair for pair in some if pair is not None]
    else:
        pairs = []
        for pair in read_preferences(path, rejects=lambda *about: None):
            if pair.label is not None:
                pairs.append(pair)
            if len(pairs) == number:
                break
    if not pairs:
        raise UserError(
            f"--validation.judge={path} holds no labelled pair (rendered prompts cannot be shown "
            "in both orders); name a prepared directory or a file of labelled pairs"
        )
    return pairs


def report(
    config: TrainingConfig,
    outcome: Outcome,
    checkpoints: RunCheckpoints,
    picture: Path | None,
    steps: int,
) -> None:
    """Where the result is, and what to do with it."""
    workdir = config.workdir
    if outcome.stopped_by is not None:
        log_primary(
            f"stopped by signal {outcome.stopped_by} after step {outcome.step} of {steps}, saved; "
            "the same command goes on"
        )
        return
    if picture:
        log_primary(f"curves: {picture}")
    best = checkpoints.best()
    if best not in (None, steps):
        log_primary(f"the best validation was at step {best}: {workdir}/{CHECKPOINTS}/{best}")
    log_primary(
        f"done: {steps} steps, in {workdir}. Judge with it, or export it:\n"
        f"  python -m rmr1_jax.main --stage=judge --model={workdir} --input=PAIRS.jsonl "
        "--output=VERDICTS.jsonl\n"
        f"  python -m rmr1_jax.main --stage=convert --input={workdir} --output=HF_DIR "
        "--to=huggingface"
    )


def reading(model: ModelConfig) -> AbstractContextManager[Bar]:
    """A bar over the parameters of a checkpoint, on the first process."""
    return bar("reading weights", count_parameters(model), quiet=jax.process_index() != 0)
