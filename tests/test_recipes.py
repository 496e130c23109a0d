"""Every recipe in configs/ loads, passes its checks, and its docstring says how to run it."""

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.config import (
    STAGES,
    EvaluateConfig,
    GrpoConfig,
    JudgeConfig,
    SftConfig,
    load_recipe,
    parse_config,
    take_option,
)

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPES = sorted((REPOSITORY / "configs").glob("*.py"))


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
class TestRecipe:
    def test_is_named_after_a_stage_and_passes_its_checks(
        self, recipe: Path, tmp_path: Path
    ) -> None:
        stage = recipe.stem.partition("_")[0]
        assert stage in STAGES
        with_files(load_recipe(str(recipe), stage), tmp_path).check()

    def test_gives_a_command_that_parses(
        self, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(REPOSITORY)
        docstring = ast.get_docstring(ast.parse(recipe.read_text()))
        assert docstring is not None
        _, _, rest = docstring.partition("python -m rmr1_jax.main ")
        words = rest.partition("\n\n")[0].replace("\\\n", " ").split()
        stage, arguments = take_option(words, "stage")
        assert stage is not None
        assert take_option(arguments, "config")[0] == str(recipe.relative_to(REPOSITORY))
        with_files(parse_config(stage, arguments), tmp_path).check()

    def test_says_what_it_was_run_on(self, recipe: Path) -> None:
        docstring = ast.get_docstring(ast.parse(recipe.read_text()))
        assert docstring is not None and "\nHardware: " in docstring
        assert "\nExpected result: " in docstring


def with_files(config: Any, folder: Path) -> Any:
    """The configuration with files that exist where a recipe leaves them to the user."""
    if isinstance(config, JudgeConfig):
        return replace(config, model=str(folder), input="pairs.jsonl", output="verdicts.jsonl")
    if isinstance(config, EvaluateConfig):
        return replace(config, model=str(folder), output=str(folder))
    if isinstance(config, GrpoConfig):
        return replace(
            config, model=str(folder), data=replace(config.data, train=config.data.train or "PAIRS")
        )
    if isinstance(config, SftConfig) and config.model != "":
        return replace(config, model=str(folder))
    return config
