"""The benchmark of a GRPO step: its job, its talk with engines, its order and its table. No peer is
needed, and nothing is measured."""

import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("torch")

from benchmarks import grpo_step
from benchmarks.decode import Log
from benchmarks.grpo_peers import engines
from benchmarks.grpo_peers.conversation import PHASES, Job, Measured, reward
from benchmarks.grpo_peers.engines import Engine, Step
from rmr1_jax.errors import UserError
from rmr1_jax.toy_task import write_tokenizer
from rmr1_jax.toy_task.toy_tokenizer import tiny_model_config, toy_tokenizer

JOB = Job(
    model="model",
    prompts=[[5, 6, 7], [8, 9]],
    lengths=[[3, 8], [2, 5]],
    max_new_tokens=8,
    stop_id=2,
    banned_ids=[0, 2],
    pad_id=0,
    micro_prompts=1,
    threads=1,
)

# An engine that answers as real ones do, without doing anything.
ENGINE = """
from benchmarks.grpo_peers.conversation import Benchmark, Measured
benchmark, measured = Benchmark(), Measured()
print("what a library prints")
benchmark.answer({"library": "1.0"})
while benchmark.wants_step():
    measured.begin()
    measured.count("rollout", 0.0)
    measured.lengths = LENGTHS
    benchmark.answer(measured.end())
"""


class TestJob:
    def test_survives_json(self) -> None:
        assert "\n" not in JOB.to_json()
        assert Job.from_json(JOB.to_json()) == JOB

    def test_counts_its_work(self) -> None:
        assert (JOB.group_size, JOB.rows, JOB.new_tokens) == (2, 4, 18)

    def test_prompts_are_spread_and_lengths_average_half_of_the_longest(
        self, tmp_path: Path
    ) -> None:
        write_tokenizer(tmp_path)
        config = tiny_model_config(len(toy_tokenizer()))
        (tmp_path / "config.json").write_text(json.dumps(config))
        job = grpo_step.make_job(tmp_path, options())
        assert [len(prompt) for prompt in job.prompts] == [230, 247, 265, 282]
        assert [len(group) for group in job.lengths] == [7] * 4
        drawn = [length for group in job.lengths for length in group]
        assert max(drawn) == 128 and min(drawn) >= 1 and sum(drawn) == 28 * 64
        assert {job.stop_id, job.pad_id} <= set(job.banned_ids) and job.stop_id != job.pad_id
        assert not any(job.pad_id in prompt for prompt in job.prompts)
        assert grpo_step.make_job(tmp_path, options()) == job


class TestOptions:
    def test_default_is_the_setting_of_the_published_table(self) -> None:
        found = options()
        assert (found.prompts, found.prompt_tokens, found.samples) == (4, 256, 7)
        assert (found.max_new_tokens, found.only) == (128, ["ours", "trl", "tunix"])

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["--model=m", "--only=veRL"],
            ["--model=m", "--only="],
            ["--model=m", "--samples=1"],
            ["--model=m", "--prompts=1", "--samples=3"],
            ["--model=m", "--threads=0"],
        ],
    )
    def test_impossible_ones_are_refused(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit):
            grpo_step.parse(arguments)

    def test_preparing_needs_no_model(self) -> None:
        assert grpo_step.parse(["--prepare"]).prepare


class TestEnvironments:
    def test_one_that_is_not_prepared_is_refused_with_the_command(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(engines, "ROOT", tmp_path)
        with pytest.raises(UserError, match="--prepare"):
            engines.interpreter("trl")

    def test_one_with_other_packages_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(engines, "ROOT", tmp_path)
        mark = tmp_path / engines.ENVIRONMENTS / "trl" / engines.MARK
        mark.parent.mkdir(parents=True)
        mark.write_text(engines.pins("trl").read_text())
        assert Path(engines.interpreter("trl")).parent.name == "bin"
        mark.write_text("trl==0.1\n")
        with pytest.raises(UserError, match="--prepare"):
            engines.interpreter("trl")

    @pytest.mark.parametrize("name", engines.PEERS)
    def test_all_packages_are_pinned(self, name: str) -> None:
        lines = engines.pins(name).read_text().splitlines()
        assert all("==" in line for line in lines if not line.startswith("#"))


class TestEngine:
    def start(self, monkeypatch: pytest.MonkeyPatch, code: str) -> Engine:
        monkeypatch.setattr(engines, "command", lambda name: [sys.executable, "-c", code])
        return Engine("fake", JOB)

    @pytest.fixture(autouse=True)
    def logs_elsewhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(engines, "ENVIRONMENTS", tmp_path)

    def test_answers_steps_and_its_prints_go_to_the_log(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = self.start(monkeypatch, ENGINE.replace("LENGTHS", "[8, 2, 5, 3]"))
        assert engine.versions == {"library": "1.0"}
        first, second = engine.step(), engine.step()
        assert set(first.phases) == set(PHASES)
        assert first.seconds == pytest.approx(sum(first.phases.values()))
        assert second.peak_bytes >= first.peak_bytes > 0
        engine.close()
        engine.close()
        assert "what a library prints" in engine.log.read_text()

    def test_other_lengths_than_were_forced_are_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = self.start(monkeypatch, ENGINE.replace("LENGTHS", "[8, 8, 8, 8]"))
        with pytest.raises(RuntimeError, match="other lengths"):
            engine.step()
        engine.close()

    def test_one_that_dies_shows_its_last_words(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(RuntimeError, match="no such model"):
            self.start(monkeypatch, "raise SystemExit('no such model')")


@pytest.mark.nightly
def test_our_engine_takes_steps_of_the_forced_lengths(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "ENVIRONMENTS", tmp_path)
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("qwen2"), model)
    write_tokenizer(model)
    engine = Engine("ours", replace(JOB, model=str(model)))
    for _ in range(2):  # refuses other lengths
        taken = engine.step()
        assert taken.phases["rollout"] > 0 and taken.phases["reference"] > 0
    engine.close()


class Scripted:
    """An engine whose seconds are known beforehand."""

    def __init__(self, name: str, seconds: list[float], order: list[str]) -> None:
        self.name, self.closed = name, False
        self._seconds, self._order = iter(seconds), order

    def step(self) -> Step:
        self._order.append(self.name)
        return step(next(self._seconds))

    def close(self) -> None:
        self.closed = True


class TestMeasuring:
    @pytest.fixture(autouse=True)
    def no_pause(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(grpo_step, "PAUSE", 0.0)

    def test_steps_are_taken_in_turn_with_ours_before_each_peer(self) -> None:
        order: list[str] = []
        scripted = {
            "ours": Scripted("ours", [1.0, 2.0, 1.0, 2.0], order),
            "trl": Scripted("trl", [5.0, 6.0], order),
            "tunix": Scripted("tunix", [4.0, 8.0], order),
        }
        taken, pairs, _ = grpo_step.measure(cast(dict[str, Engine], scripted), 2, Log())
        assert order == ["ours", "trl", "ours", "tunix"] * 2
        assert pairs == {"trl": ([1.0, 1.0], [5.0, 6.0]), "tunix": ([2.0, 2.0], [4.0, 8.0])}
        assert [each.seconds for each in taken["ours"]] == [1.0, 2.0, 1.0, 2.0]

    def test_peers_are_measured_without_ours_too(self) -> None:
        order: list[str] = []
        scripted = {"trl": Scripted("trl", [5.0], order)}
        taken, pairs, _ = grpo_step.measure(cast(dict[str, Engine], scripted), 1, Log())
        assert order == ["trl"] and not pairs and len(taken["trl"]) == 1

    @pytest.mark.parametrize("second", [[9.0, 2.0], [9.0, 4.0]])
    def test_the_faster_number_of_prompts_at_a_time_is_kept(self, second: list[float]) -> None:
        made = {1: Scripted("trl", [8.0, 3.0], []), 4: Scripted("trl", second, [])}
        kept, first = grpo_step.faster(lambda size: cast(Engine, made[size]), [1, 4], Log())
        chosen = 4 if second[1] < 3.0 else 1
        assert cast(Any, kept) is made[chosen]
        assert first == (9.0 if chosen == 4 else 8.0)
        assert [made[size].closed for size in (1, 4)] == [chosen != 1, chosen != 4]


class TestTable:
    def test_shows_medians_ratios_phases_and_versions(self) -> None:
        lines = grpo_step.table(canned()).splitlines()
        assert "| TRL 1.16.0 (torch 2.15.0) |" in lines[0] and "rmr1_jax (jax 0.12.0)" in lines[0]
        cells = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("|")}
        assert cells["seconds a step"] == "| seconds a step | 5.00 | 28.00 |"
        assert cells["times ours (pairs)"].endswith("| – | 5.60 (5.20 to 6.00) |")  # noqa: RUF001
        assert cells["update, s"] == "| update, s | 2.00 | 11.20 |"
        assert cells["taken at a time"] == "| taken at a time | 1 packed row | 4 groups |"

    def test_says_what_was_run(self) -> None:
        notes = grpo_step.notes(canned())
        assert "2 prompts of 2 to 3 tokens x 2 samples of 2 to 8 new tokens, 18 in all" in notes[0]
        assert "Some CPU, 1 thread, fp32" in notes[1]
        assert len(notes) == 3

    def test_warns_of_a_machine_that_was_not_quiet(self) -> None:
        assert "Do not quote" in grpo_step.notes(canned() | {"other_load": 0.5})[-1]


class TestSteps:
    def test_the_update_is_what_remains(self) -> None:
        measured = Measured()
        measured.timing("rollout", lambda: sum(range(1000)))()
        measured.count("reward", 0.25)
        ended = measured.end()
        assert ended["phases"]["rollout"] > 0 and ended["phases"]["reward"] == 0.25
        assert sum(ended["phases"].values()) == pytest.approx(ended["seconds"])

    def test_rewards_differ_and_do_not_change(self) -> None:
        found = [reward(str(number)) for number in range(100)]
        assert set(found) == {1.0, -1.0} and 30 < found.count(1.0) < 70
        assert found == [reward(str(number)) for number in range(100)]


def options(*arguments: str) -> Namespace:
    return grpo_step.parse(["--model=model", "--threads=1", *arguments])


def step(seconds: float) -> Step:
    shares = dict(zip(PHASES, (0.4, 0.15, 0.05, 0.4), strict=True))
    phases = {phase: share * seconds for phase, share in shares.items()}
    return Step(seconds, phases, cpu_seconds=0.0, peak_bytes=2_000_000_000)


def canned() -> dict[str, Any]:
    """A report as `run` makes it, once through JSON."""
    ours, theirs = [5.0, 5.0], [26.0, 30.0]
    report = {
        "machine": {"processor": "Some CPU", "cores": 2},
        "versions": {"ours": {"jax": "0.12.0"}, "trl": {"trl": "1.16.0", "torch": "2.15.0"}},
        "settings": {"model": "tiny", "repeats": 2},
        "job": json.loads(JOB.to_json()),
        "other_load": 0.01,
        "engines": {
            "ours": grpo_step.summary(JOB, [step(seconds) for seconds in ours])
            | {"first_seconds": 20.0, "micro_prompts": 1},
            "trl": grpo_step.summary(JOB, [step(seconds) for seconds in theirs])
            | {"first_seconds": 31.0, "micro_prompts": 4},
        },
        "ratios": {"trl": grpo_step.ratios(ours, theirs)},
    }
    return cast(dict[str, Any], json.loads(json.dumps(report)))
