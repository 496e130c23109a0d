"""Runs a stage, and before it what the embedded default needs.

Without inputs of its own, a stage does the toy task: its recipe takes the place of the class
defaults, and the stages whose results that recipe names run first where these are absent. Stages
know nothing of one another.
"""

import importlib
import json
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rmr1_jax.config import (
    STAGES,
    EvaluateConfig,
    GrpoConfig,
    PrepareConfig,
    SftConfig,
    SynthesizeConfig,
)
from rmr1_jax.config.checks import GRPO, PAIRS, SFT, TRACES
from rmr1_jax.config.evaluate_config import BENCHMARKS
from rmr1_jax.errors import UserError
from rmr1_jax.toy_task.toy_recipes import (
    toy_evaluate,
    toy_grpo,
    toy_prepare,
    toy_sft,
    toy_synthesize,
)

RECIPES = {
    "prepare": toy_prepare,
    "synthesize": toy_synthesize,
    "sft": toy_sft,
    "grpo": toy_grpo,
    "evaluate": toy_evaluate,
}
# What a stage works on. If none of these options is given, it does the toy task.
INPUTS: dict[str, set[str]] = {
    "prepare": {"input"},
    "synthesize": {"input"},
    "sft": {"model", "data.train"},
    "grpo": {"model", "data.train"},
    "evaluate": {"model", "score_only", "import_logs", "compare", *BENCHMARKS},
}
MAKES: dict[str, Callable[[], PrepareConfig | SynthesizeConfig | SftConfig | GrpoConfig]] = {
    PAIRS: toy_prepare,
    TRACES: toy_synthesize,
    SFT: toy_sft,
    GRPO: toy_grpo,
}


def embedded_default(stage: str, given: Collection[str]) -> Any:
    """The configuration over which a stage's options are parsed.

    Args:
      stage: a name in `STAGES`.
      given: the names of the options on the command line.
    """
    if stage in RECIPES and not INPUTS[stage] & set(given):
        return RECIPES[stage]()
    return STAGES[stage]()


def run(config: Any) -> int:
    """Run a stage, and first what it needs of the toy task. Returns the exit status.

    Raises UserError.
    """
    config.check()
    from rmr1_jax.distributed.hosts import run_on_primary  # it imports jax

    for needed in missing(config):
        if isinstance(needed, SftConfig | GrpoConfig):
            if run_stage(needed):
                raise UserError(f"the run in {needed.workdir} was stopped; rerun to resume it")
        else:
            run_on_primary(partial(run_stage, needed), about=needed.output)
    return run_stage(config)


def run_stage(config: Any) -> int:
    """Run one stage alone. Returns the exit status."""
    [name] = [name for name, kind in STAGES.items() if type(config) is kind]
    # Imported late: the stages import jax, and --help should not wait for it.
    module = "rmr1_jax.demo" if name == "demo" else f"rmr1_jax.stages.{name}_stage"
    return int(importlib.import_module(module).run(config))


def missing(config: Any) -> Iterator[Any]:
    """Recipes of the toy task whose results `config` names and that are not there, in order.

    Each is looked for when its turn comes, after those before it have run.
    """
    from rmr1_jax.distributed.hosts import broadcast_from_primary

    for name in named_inputs(config):
        if name in MAKES:
            recipe = MAKES[name]()
            if not broadcast_from_primary(partial(is_done, recipe), about=name):
                yield from missing(recipe)
                yield recipe


def named_inputs(config: Any) -> list[str]:
    """The paths of data and models that a configuration names."""
    match config:
        case SynthesizeConfig():
            return [config.input]
        case SftConfig():
            return [config.data.train, config.validation.judge]
        case GrpoConfig():
            return [config.model, config.data.train, config.validation.judge]
        case EvaluateConfig() if config.model:
            return [config.model, config.preferences]
    return []


def is_done(recipe: PrepareConfig | SynthesizeConfig | SftConfig | GrpoConfig) -> bool:
    """Whether a recipe of the toy task has come to its end."""
    if isinstance(recipe, SftConfig | GrpoConfig):
        from rmr1_jax.models.checkpoint import CHECKPOINTS

        return (Path(recipe.workdir) / CHECKPOINTS / str(recipe.max_steps)).is_dir()
    if isinstance(recipe, PrepareConfig):
        from rmr1_jax.data.preference_store import is_complete

        return is_complete(recipe.output)
    try:
        report = json.loads((Path(recipe.output) / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not report["stopped"]
