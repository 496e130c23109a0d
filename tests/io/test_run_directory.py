"""A run's directory: entered again by the same run only."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from rmr1_jax.config import OptimizerConfig, SftConfig
from rmr1_jax.errors import UserError
from rmr1_jax.io.run_directory import open_workdir, resume_or_refuse, write_settings

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


class TestResumeOrRefuse:
    """What stages without a `config.json` call themselves."""

    RECORDED: ClassVar = {"settings": {"seed": 1, "teacher1.model": "a"}, "benchmarks": {"rmb": 5}}

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        write_settings(tmp_path / "run.json", self.RECORDED)
        return tmp_path / "run.json"

    def test_gives_what_is_recorded_and_nothing_where_nothing_is(self, file: Path) -> None:
        assert resume_or_refuse(file, {"settings": {"seed": 1}}) == self.RECORDED
        assert resume_or_refuse(file.with_name("other.json"), {"settings": {"seed": 2}}) is None

    def test_shows_each_difference(self, file: Path) -> None:
        with pytest.raises(UserError) as caught:
            resume_or_refuse(file, {"settings": {"seed": 2, "teacher1.model": "b", "new": True}})
        assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == [
            "new: absent there, True now",
            "seed: 1 there, 2 now",
            "teacher1.model: 'a' there, 'b' now",
        ]
        assert "Give the same options, or choose another --output." in str(caught.value)

    def test_a_section_may_gain_settings_but_not_change_them(self, file: Path) -> None:
        resume_or_refuse(file, {"benchmarks": {"new": 7}}, may_join=["benchmarks"])
        with pytest.raises(UserError, match=r"benchmarks\.rmb: 5 there, 6 now"):
            resume_or_refuse(file, {"benchmarks": {"rmb": 6}}, may_join=["benchmarks"])

    def test_the_whole_record_is_compared_if_asked_for(self, file: Path) -> None:
        with pytest.raises(UserError, match=r"benchmarks\.rmb: 5 there, absent now"):
            resume_or_refuse(file, {"settings": self.RECORDED["settings"]}, whole=True)

    def test_what_nothing_was_made_with_gives_way(self, file: Path) -> None:
        assert resume_or_refuse(file, {"settings": {"seed": 2}}, started=False) is None
