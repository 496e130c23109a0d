"""A run of `--stage=grpo` that is stopped anywhere goes on as if it had not been."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.rl.rollout import Rollout
from rmr1_jax.rl.trainer import Grpo
from rmr1_jax.training.metrics import read_metrics
from tests.conftest import REPOSITORY
from tests.stages.tiny_grpo import arguments, grpo, learnt

pytestmark = pytest.mark.usefixtures("alone", "compiled_once")

STEPS = "--max_steps=4"
# One prompt teaches nothing. Four steps of four prompts see all twelve, so a step replaces it.
DYNAMIC = (
    "--advantage.dynamic_sampling=True",
    "--reward.function=tests.stages.tiny_grpo:even_text_but_for_one",
)
# Runs a stage that kills itself at a moment; sys.argv is that moment and the stage's options.
ENDS_ITSELF = """
import os, signal, sys
from rmr1_jax.main import main
from rmr1_jax.training.run_checkpoints import RunCheckpoints
from rmr1_jax.rl.trainer import Grpo
from rmr1_jax.rl.rollout import Rollout

moment, number, *arguments = sys.argv[1:]
left = int(number)

def count_down():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def within_rollout(sample):
    def sample_and_end(self, prompts, *, on_progress, **options):
        def progress(*done):
            if not done[1]:
                count_down()
            on_progress(*done)
        return sample(self, prompts, on_progress=progress, **options)
    return sample_and_end

def within_update(start):
    def start_and_end(self, *given, **options):
        start(self, *given, **options)
        update = self._update
        def update_and_end(*given):
            done = update(*given)
            count_down()
            return done
        self._update = update_and_end
    return start_and_end

def within_save(save):
    def save_and_end(self, *given, **options):
        save(self, *given, **options)
        count_down()
    return save_and_end

if moment == "rollout":
    Rollout.sample = within_rollout(Rollout.sample)
if moment == "update":
    Grpo.__init__ = within_update(Grpo.__init__)
if moment == "save":
    RunCheckpoints.save = within_save(RunCheckpoints.save)
sys.exit(main(arguments))
"""


@pytest.fixture(scope="module")
def unbroken(
    tiny_model: Path,
    tiny_pairs: Path,
    tmp_path_factory: pytest.TempPathFactory,
    alone: None,
    compiled_once: None,
) -> Path:
    """Four steps that nothing interrupts, with a group that is replaced in one of them."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    assert grpo(workdir, tiny_model, tiny_pairs, *DYNAMIC, STEPS) == 0
    assert max(record["rounds"] for record in read_metrics(workdir)) > 1
    return workdir


def signal_within(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """SIGTERM while the n-th rollout samples."""
    calls, sample = 0, Rollout.sample

    def interrupted(self: Rollout, prompts: Any, *, on_progress: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return sample(self, prompts, on_progress=on_progress, **options)

    monkeypatch.setattr(Rollout, "sample", interrupted)


class TestASignal:
    def test_within_a_rollout_gives_the_step_up(
        self,
        unbroken: Path,
        tiny_model: Path,
        tiny_pairs: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        step, rounds = 3, [record["rounds"] for record in read_metrics(unbroken)]
        run: Callable[..., int] = lambda: grpo(  # noqa: E731
            tmp_path / "run", tiny_model, tiny_pairs, *DYNAMIC, STEPS, "--checkpoint.every=100"
        )
        with pytest.MonkeyPatch.context() as patch:
            signal_within(patch, sum(rounds[: step - 1]) + 1)
            assert run() == 128 + signal.SIGTERM
        said = capsys.readouterr().err
        assert f"after step {step - 1} of 4, saved; the same command goes on" in said
        assert learnt(tmp_path / "run") == learnt(unbroken)[: step - 1]
        assert (tmp_path / "run" / "checkpoints" / str(step - 1)).is_dir()
        assert run() == 0
        assert learnt(tmp_path / "run") == learnt(unbroken)

    def test_within_a_validation_gives_that_up(
        self,
        tiny_model: Path,
        tiny_pairs: Path,
        tmp_path: Path,
        asked_to_stop_in: Callable[[type, str], None],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        asked_to_stop_in(Grpo, "validate")
        judged = ("--validation.every=2", f"--validation.judge={tiny_pairs}")
        status = grpo(tmp_path / "run", tiny_model, tiny_pairs, *judged)
        assert status == 128 + signal.SIGTERM
        assert "after step 0 of 2, saved" in capsys.readouterr().err
        assert not read_metrics(tmp_path / "run")

    def test_after_a_step_that_was_saved_needs_no_other_checkpoint(
        self, unbroken: Path, tiny_model: Path, tiny_pairs: Path, tmp_path: Path
    ) -> None:
        command = (tmp_path / "run", tiny_model, tiny_pairs, *DYNAMIC, STEPS)
        with pytest.MonkeyPatch.context() as patch:
            signal_within(patch, read_metrics(unbroken)[0]["rounds"] + 1)
            assert grpo(*command) == 128 + signal.SIGTERM
        assert grpo(*command) == 0
        assert learnt(tmp_path / "run") == learnt(unbroken)


@pytest.mark.nightly
def test_a_kill_in_rollout_update_or_save_changes_nothing(
    tiny_model: Path, tiny_pairs: Path, tmp_path: Path
) -> None:
    """Bit for bit, though SIGKILL leaves a step half done, and a checkpoint half written."""

    def run(workdir: str, moment: str, number: int) -> int:
        options = arguments(tmp_path / workdir, tiny_model, tiny_pairs, *DYNAMIC, STEPS)
        done = subprocess.run(
            [sys.executable, "-c", ENDS_ITSELF, moment, str(number), *options],
            cwd=REPOSITORY,
            env={**os.environ, "RMR1_JAX_CACHE": str(tmp_path / "programs")},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    assert run("whole", "none", 0) == 0
    expected = learnt(tmp_path / "whole")
    assert len(expected) == 4
    assert any(record["rounds"] > 1 for record in read_metrics(tmp_path / "whole"))
    for moment, number in (("rollout", 2), ("update", 3), ("save", 2)):
        assert run("killed", moment, number) == -signal.SIGKILL, moment
    assert run("killed", "none", 0) == 0
    assert learnt(tmp_path / "killed") == expected
    traces = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("whole", "killed")]
    assert traces[0] == traces[1]
