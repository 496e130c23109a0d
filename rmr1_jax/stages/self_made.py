"""The embedded default of the training stages: data of the self-made task, made where absent."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from rmr1_jax.config import PrepareConfig, SftConfig, SynthesizeConfig
from rmr1_jax.config.self_made import self_made_sft
from rmr1_jax.data.self_made import self_made_tokenizer, tiny_model_config
from rmr1_jax.data.store import is_complete
from rmr1_jax.data.traces import TRACES
from rmr1_jax.models.config import ModelConfig


def with_self_made_defaults(config: SftConfig) -> SftConfig:
    """The configuration itself where it names a model or traces; else that of the self-made task,
    with every option that differs from its default kept as it is."""
    if config.model or config.data.train:
        return config
    return _changed(self_made_sft(), config, SftConfig())


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


def make_self_made(config: SftConfig) -> None:
    """Prepare and distil the self-made task, unless that is done or other data are named."""
    from rmr1_jax.stages.prepare import prepare
    from rmr1_jax.stages.synthesize import synthesize

    pairs, traces = PrepareConfig(), SynthesizeConfig()
    if config.validation.judge == pairs.output and not is_complete(pairs.output):
        prepare(pairs)
    if config.data.train == traces.output and not (Path(traces.output) / TRACES).is_file():
        synthesize(traces)


def self_made_model() -> ModelConfig:
    """The small decoder that starts from random weights."""
    described = tiny_model_config(len(self_made_tokenizer()))
    return ModelConfig.from_hf(described, source="the self-made task")
