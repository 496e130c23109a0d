"""What the embedded default still lacks is made first, and only that."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax import pipeline
from rmr1_jax.config import (
    EvaluateConfig,
    GrpoConfig,
    JudgeConfig,
    PrepareConfig,
    SftConfig,
    SynthesizeConfig,
)
from rmr1_jax.config.checks import GRPO, PAIRS, SFT, TRACES
from rmr1_jax.errors import UserError
from rmr1_jax.toy_task.toy_recipes import toy_evaluate, toy_grpo, toy_sft, toy_synthesize


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(name: str) -> None:
    """Leave what the stage that makes `name` would leave behind."""
    recipe: Any = pipeline.MAKES[name]()
    place = Path(name)
    if name in (SFT, GRPO):
        (place / "checkpoints" / str(recipe.max_steps)).mkdir(parents=True)
        return
    place.mkdir(parents=True, exist_ok=True)
    if name == PAIRS:
        (place / "store.json").write_text("{}")
    else:
        (place / "report.json").write_text(json.dumps({"stopped": ""}))


def kinds(config: Any) -> list[type]:
    """What is made for a configuration, each found to be there once it was made."""
    made = []
    for recipe in pipeline.missing(config):
        made.append(type(recipe))
        make(getattr(recipe, "workdir", "") or recipe.output)
    return made


def test_the_last_stage_needs_all_others_in_order() -> None:
    assert kinds(toy_evaluate()) == [PrepareConfig, SynthesizeConfig, SftConfig, GrpoConfig]
    assert kinds(toy_evaluate()) == []


def test_what_is_there_is_not_made_again() -> None:
    make(PAIRS)
    assert kinds(toy_sft()) == [SynthesizeConfig]
    assert kinds(toy_grpo()) == [SftConfig]


def test_a_synthesis_that_was_stopped_goes_on() -> None:
    make(PAIRS)
    make(TRACES)
    Path(TRACES, "report.json").write_text(json.dumps({"stopped": "the budget is spent"}))
    assert kinds(toy_sft()) == [SynthesizeConfig]


def test_a_run_that_was_killed_goes_on() -> None:
    for name in (PAIRS, TRACES):
        make(name)
    (Path(SFT) / "checkpoints" / "1").mkdir(parents=True)
    assert kinds(toy_grpo()) == [SftConfig]


@pytest.mark.parametrize(
    "config",
    [
        replace(toy_synthesize(), input="pairs.jsonl"),
        replace(toy_sft(), data=replace(toy_sft().data, train="traces.jsonl")),
        replace(toy_grpo(), model="MODEL", data=replace(toy_grpo().data, train="pairs.jsonl")),
        JudgeConfig(model="MODEL"),
        EvaluateConfig(score_only=True, output="results"),
    ],
    ids=lambda config: type(config).__name__,
)
def test_data_of_the_user_need_nothing(config: Any) -> None:
    if hasattr(config, "validation"):
        config = replace(config, validation=replace(config.validation, judge=""))
    assert kinds(config) == []


def test_a_mesh_that_cannot_be_read_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "run_stage", lambda config: pytest.fail("a stage has run"))
    for config in (toy_sft(), toy_grpo(), JudgeConfig(model=".", input="a", output="b")):
        with pytest.raises(UserError, match=r"mesh 'x': 'x' names no axis"):
            pipeline.run(replace(config, mesh="x"))
