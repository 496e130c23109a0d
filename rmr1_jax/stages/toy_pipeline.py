"""The embedded default of the training stages: the toy task, made where it is absent."""

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from rmr1_jax.config import EvaluateConfig, GrpoConfig, PrepareConfig, SftConfig, SynthesizeConfig
from rmr1_jax.config.checks import GRPO, PAIRS, SFT, TRACES
from rmr1_jax.config.evaluate_config import BENCHMARKS
from rmr1_jax.data.preference_store import is_complete
from rmr1_jax.data.traces import TRACES as TRACES_FILE
from rmr1_jax.distributed.hosts import broadcast_from_primary
from rmr1_jax.errors import UserError
from rmr1_jax.models.checkpoint import CHECKPOINTS
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.toy_task import tiny_model_config, toy_tokenizer
from rmr1_jax.toy_task.toy_recipes import (
    toy_evaluate,
    toy_grpo,
    toy_prepare,
    toy_sft,
    toy_synthesize,
)


def prepare_defaults(config: PrepareConfig) -> PrepareConfig:
    """The configuration itself where it names a source; else the toy recipe, with what was
    asked for otherwise."""
    if config.input or config.sources:
        return config
    return _changed(toy_prepare(), config, PrepareConfig())


def synthesize_defaults(config: SynthesizeConfig) -> SynthesizeConfig:
    """The same for traces."""
    return config if config.input else _changed(toy_synthesize(), config, SynthesizeConfig())


def sft_defaults(config: SftConfig) -> SftConfig:
    """The same for training, where neither a model nor traces are named."""
    if config.model or config.data.train:
        return config
    return _changed(toy_sft(), config, SftConfig())


def grpo_defaults(config: GrpoConfig) -> GrpoConfig:
    """The same for reinforcement learning, where neither a model nor pairs are named."""
    if config.model or config.data.train:
        return config
    return _changed(toy_grpo(), config, GrpoConfig())


def evaluate_defaults(config: EvaluateConfig) -> EvaluateConfig:
    """The same for evaluation, where neither a judge nor records or benchmarks are named."""
    named = config.model, config.score_only, config.import_logs, config.compare
    if any(named) or any(getattr(config, name) for name in BENCHMARKS):
        return config
    return _changed(toy_evaluate(), config, EvaluateConfig())


def _changed(target: Any, given: Any, default: Any) -> Any:
    """`target` with the fields in which `given` differs from `default`."""
    changes = {}
    for field in fields(target):
        new, old = getattr(given, field.name), getattr(default, field.name)
        if is_dataclass(new):
            changes[field.name] = _changed(getattr(target, field.name), new, old)
        elif new != old:
            changes[field.name] = new
    return replace(target, **changes)


def make_pairs(path: str) -> None:
    """Prepare the pairs of the toy task, if those are meant and absent."""
    if path == PAIRS and not is_complete(path):
        from rmr1_jax.stages.prepare_stage import prepare

        prepare(toy_prepare())


def make_traces(path: str) -> None:
    """Distil the traces of the toy task, if those are meant and absent."""
    if path == TRACES and not _is_distilled(Path(path)):
        from rmr1_jax.stages.synthesize_stage import synthesize

        make_pairs(PAIRS)
        synthesize(toy_synthesize())


def make_sft(path: str) -> None:
    """Train the judge that reinforcement learning starts from, if that is meant and not finished.

    Raises UserError where it was stopped by a signal.
    """
    recipe = toy_sft()
    if path == SFT and not broadcast_from_primary(lambda: _is_trained(recipe), about=path):
        from rmr1_jax.stages.sft_stage import run

        _train(run, recipe)


def make_grpo(path: str) -> None:
    """Train the judge that is evaluated, if that is meant and not finished. Raises UserError."""
    recipe = toy_grpo()
    if path == GRPO and not broadcast_from_primary(lambda: _is_trained(recipe), about=path):
        from rmr1_jax.stages.grpo_stage import run

        _train(run, recipe)


def _is_trained(recipe: SftConfig | GrpoConfig) -> bool:
    return (Path(recipe.workdir) / CHECKPOINTS / str(recipe.max_steps)).is_dir()


def _train(run: Callable[[Any], int], recipe: SftConfig | GrpoConfig) -> None:
    if run(recipe):
        raise UserError(
            f"the run in {recipe.workdir} was stopped; the same command goes on with it"
        )


def _is_distilled(directory: Path) -> bool:
    """Whether synthesis came to its end there: at a cap it leaves a part of the traces."""
    try:
        report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (directory / TRACES_FILE).is_file() and not report["stopped"]


def toy_model() -> ModelConfig:
    """The small decoder that starts from random weights."""
    described = tiny_model_config(len(toy_tokenizer()))
    return ModelConfig.from_hf(described, source="the toy task")
