"""Every recipe in configs/ loads, passes its checks, and its docstring says how to run it."""

import ast
import os
import shutil
import subprocess
import sys
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
    recipes,
)
from rmr1_jax.pipeline import embedded_default

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = sorted((REPOSITORY / "configs").glob("*.py"))


@pytest.mark.parametrize("name", [name for names in recipes().values() for name in names])
def test_a_recipe_is_named_after_its_stage_and_passes_its_checks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # recipes are found from anywhere
    stage = name.partition("_")[0]
    assert stage in STAGES
    with_files(load_recipe(name, stage), tmp_path).check()


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
class TestDocstring:
    def test_gives_a_command_that_parses(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        _, _, rest = docstring(file).partition("Command:\n    rmr1 ")
        stage, *arguments = rest.partition("\n\n")[0].replace("\\\n", " ").split()
        (config,) = (word for word in arguments if word.startswith("--config="))
        assert config.removeprefix("--config=").partition(":")[0] == file.stem
        with_files(parse_config(stage, arguments), tmp_path).check()

    def test_says_what_it_was_run_on(self, file: Path) -> None:
        assert "\nHardware: " in docstring(file) and "\nExpected result: " in docstring(file)


def docstring(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text())) or ""


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


@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("name", ["batch_size", "epochs", "optimizer.learning_rate"])
def test_an_option_wins_over_the_embedded_recipe_also_where_it_is_the_class_default(
    stage: str, name: str
) -> None:
    """`--batch_size=1024` of GRPO, for example; the toy task's recipe has another."""

    def read(config: Any) -> Any:
        for part in name.split("."):
            config = getattr(config, part)
        return config

    default, embedded = read(STAGES[stage]()), embedded_default(stage, set())
    assert default != read(embedded)
    parsed = parse_config(stage, [f"--{name}={default}"], embedded_default)
    assert read(parsed) == default and parsed.workdir == embedded.workdir


def test_what_a_stage_is_given_to_work_on_ends_the_embedded_default() -> None:
    given = parse_config("grpo", ["--model=MODEL", "--data.train=PAIRS"], embedded_default)
    assert given == replace(
        GrpoConfig(), model="MODEL", data=replace(GrpoConfig().data, train="PAIRS")
    )


@pytest.mark.slow
def test_recipes_are_installed_with_the_package(tmp_path: Path) -> None:
    """In a wheel, which a checkout's folder beside the package cannot help."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "demo", "runs", "data")
    shutil.copytree(REPOSITORY, source, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, str(source), "-w", str(tmp_path)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], check=True, capture_output=True
    ).stdout.decode()
    for file in FILES:
        assert f"data/share/rmr1_jax/{file.name}" in listed
    assert "rmr1_jax/py.typed" in listed
    # Where pip puts them is not always below the interpreter's prefix.
    target = tmp_path / "target"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    shown = subprocess.run(
        [sys.executable, "-m", "rmr1_jax", "recipes"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        check=True,
        capture_output=True,
    ).stdout.decode()
    assert "sft_rm_r1:qwen-7b" in shown
