"""A run's directory: entered again by the same run only."""

from dataclasses import replace
from pathlib import Path

import pytest

from rmr1_jax.config import OptimizerConfig, SftConfig
from rmr1_jax.errors import UserError
from rmr1_jax.io.run_directory import open_workdir

CONFIG = SftConfig(workdir="run", batch_size=8)
MAY_CHANGE = ("mesh", "validation")


def test_a_new_directory_is_made_and_the_same_run_enters_it_again(tmp_path: Path) -> None:
    workdir = tmp_path / "runs" / "one"
    assert open_workdir(workdir, CONFIG, may_change=MAY_CHANGE) is False
    assert open_workdir(workdir, CONFIG, may_change=MAY_CHANGE) is True


def test_another_configuration_is_refused_with_every_difference(tmp_path: Path) -> None:
    open_workdir(tmp_path / "run", CONFIG, may_change=MAY_CHANGE)
    (tmp_path / "run" / "metrics.jsonl").touch()
    before = (tmp_path / "run" / "config.json").read_bytes()
    other = replace(CONFIG, batch_size=16, optimizer=OptimizerConfig(learning_rate=1.0))
    with pytest.raises(UserError) as caught:
        open_workdir(tmp_path / "run", other, may_change=MAY_CHANGE)
    message = str(caught.value)
    assert "--batch_size: 8 there, 16 now" in message
    assert "--optimizer.learning_rate: 5e-06 there, 1.0 now" in message
    assert "--epochs" not in message
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_what_does_not_change_the_result_may_change(tmp_path: Path) -> None:
    open_workdir(tmp_path / "run", CONFIG, may_change=MAY_CHANGE)
    other = replace(CONFIG, mesh="tensor=2", validation=replace(CONFIG.validation, every=3))
    assert open_workdir(tmp_path / "run", other, may_change=MAY_CHANGE) is True


def test_a_run_that_took_no_step_gives_way_to_another(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    open_workdir(workdir, CONFIG, may_change=())
    (workdir / "traces").mkdir()
    (workdir / "notes.txt").write_text("mine")
    other = replace(CONFIG, batch_size=16)
    assert open_workdir(workdir, other, may_change=(), made_again=("traces", "none")) is False
    assert sorted(path.name for path in workdir.iterdir()) == ["config.json", "notes.txt"]
    assert open_workdir(workdir, other, may_change=()) is True


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty and holds no run"):
        open_workdir(tmp_path, CONFIG, may_change=())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        open_workdir(tmp_path, CONFIG, may_change=())
