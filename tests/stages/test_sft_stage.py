"""`--stage=sft`, on the toy task and a model that is tiny even for that."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmr1_jax.main import main
from rmr1_jax.models.checkpoint import load_model, prompt_of
from rmr1_jax.models.weight_map import flatten
from rmr1_jax.toy_task import TOY_PROMPT, toy_preferences
from rmr1_jax.toy_task.scripted_teacher import ScriptedTeacher
from rmr1_jax.training.metrics import read_metrics
from rmr1_jax.training.sft_trainer import Sft
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.usefixtures("alone", "compiled_once")

OPTIONS = (
    "--stage=sft",
    "--data.max_length=128",
    "--data.pack_length=128",
    "--data.held_out=16",
    "--batch_size=16",
    "--optimizer.learning_rate=3e-3",
    "--remat=none",
    "--validation.every=0",
    "--checkpoint.every=2",
    "--max_steps=8",
)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as --stage=synthesize leaves it."""
    directory, teacher = tmp_path_factory.mktemp("traces"), ScriptedTeacher(1.0)
    with (directory / "traces.jsonl").open("w") as file:
        for pair in toy_preferences(200, 0):
            record = {
                "id": pair.id,
                "context_messages": TOY_PROMPT.messages(pair),
                "winner": teacher.write(pair),
                "ground_truth": f"model_{str(pair.label).lower()}",
            }
            file.write(json.dumps(record) + "\n")
    return directory


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled pairs to judge."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    with file.open("w") as out:
        for pair in toy_preferences(6, 7):
            record = {"id": pair.id, "question": pair.context[0].content, "label": pair.label}
            record |= {"response_a": pair.response_a, "response_b": pair.response_b}
            out.write(json.dumps(record) + "\n")
    return file


@pytest.fixture(scope="module")
def unbroken(
    traces: Path, tmp_path_factory: pytest.TempPathFactory, alone: None, compiled_once: None
) -> Path:
    """A run of eight steps that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    assert sft(workdir, traces) == 0
    return workdir


def sft(workdir: Path, traces: Path, *more: str) -> int:
    return main([*OPTIONS, f"--workdir={workdir}", f"--data.train={traces}", *more])


def losses(workdir: Path) -> list[tuple[int, float, float]]:
    return [(r["step"], r["loss"], r["gradient_norm"]) for r in read_metrics(workdir)]


class TestARun:
    def test_is_its_directory(self, unbroken: Path) -> None:
        names = {path.name for path in unbroken.iterdir()}
        assert {"config.json", "metrics.jsonl", "checkpoints", "model", "curves.png"} <= names
        assert json.loads((unbroken / "config.json").read_text())["batch_size"] == 16
        steps = {path.name for path in (unbroken / "checkpoints").iterdir()}
        assert steps == {"6", "8"}  # the last two

    def test_learns_and_says_how(self, unbroken: Path) -> None:
        records = read_metrics(unbroken)
        assert [record["step"] for record in records] == list(range(1, 9))
        assert records[-1]["loss"] < records[0]["loss"] - 1
        for name in ("tokens_per_second", "mfu", "seconds", "perplexity", "learning_rate"):
            assert all(isinstance(record[name], float) for record in records), name

    def test_that_is_done_stays_as_it_is(
        self, unbroken: Path, traces: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = (unbroken / "metrics.jsonl").read_bytes()
        assert sft(unbroken, traces) == 0
        assert "going on after step 8 of 8" in capsys.readouterr().err
        assert (unbroken / "metrics.jsonl").read_bytes() == before

    def test_whose_curves_cannot_be_drawn_ends_with_a_warning(
        self,
        unbroken: Path,
        traces: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(workdir: Path) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr("rmr1_jax.training.loop.draw_curves", fail)
        assert sft(unbroken, traces) == 0
        said = capsys.readouterr().err
        assert "no curves were drawn (OSError: no space left on device)" in said
        assert "done: 8 steps" in said

    def test_can_be_judged_with_and_exported(self, unbroken: Path, tmp_path: Path) -> None:
        assert main(["--stage=convert", f"--input={unbroken}", f"--output={tmp_path / 'hf'}",
                     "--to=huggingface"]) == 0  # fmt: skip
        _, exported = load_model(tmp_path / "hf")
        _, trained = load_model(unbroken)
        for (name, a), (_, b) in zip(flatten(exported), flatten(trained), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
        prompt = prompt_of(tmp_path / "hf")
        assert prompt is not None and Path(prompt).read_text() == TOY_PROMPT.system

    def test_an_earlier_checkpoint_can_be_named(self, unbroken: Path) -> None:
        _, last = load_model(unbroken)
        _, earlier = load_model(unbroken / "checkpoints" / "6")
        assert not np.array_equal(last["embed"]["embedding"], earlier["embed"]["embedding"])


def test_validation_judges_held_out_pairs_in_both_orders(
    traces: Path, pairs: Path, tmp_path: Path
) -> None:
    validation = ("--validation.every=2", f"--validation.judge={pairs}", "--max_steps=2")
    assert sft(tmp_path / "run", traces, *validation, "--validation.max_new_tokens=8") == 0
    last = read_metrics(tmp_path / "run")[-1]
    assert 0 < last["validation/loss"] < 10
    assert last["validation/no_verdict"] == 1.0  # eight tokens are no trace
    samples = (tmp_path / "run" / "samples" / "step_000002.jsonl").read_text().splitlines()
    labels = [json.loads(line)["label"] for line in samples]
    assert len(labels) == 12 and labels.count("A") == 6


@pytest.mark.parametrize("judges", [False, True])
def test_a_signal_within_a_validation_saves(
    judges: bool,
    traces: Path,
    pairs: Path,
    tmp_path: Path,
    asked_to_stop_in: Callable[[type, str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked_to_stop_in(Sft, "validate")
    measured = ("--data.held_out=0", f"--validation.judge={pairs}") if judges else ()
    status = sft(tmp_path / "run", traces, "--validation.every=2", *measured)
    assert status == 128 + signal.SIGTERM
    assert "after step 0 of 8, saved" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "0").is_dir()


class TestGoingOn:
    @pytest.mark.devices8
    def test_on_another_mesh_gives_the_same_losses_to_rounding(
        self, unbroken: Path, traces: Path, tmp_path: Path
    ) -> None:
        workdir = tmp_path / "run"
        shutil.copytree(unbroken, workdir)
        for step in ("6", "8"):
            shutil.rmtree(workdir / "checkpoints" / step)
        assert sft(workdir, traces) == 0  # from the start: the same again
        assert losses(workdir) == losses(unbroken)
        shutil.rmtree(workdir / "checkpoints" / "8")
        assert sft(workdir, traces, "--mesh=fsdp=2,tensor=4") == 0
        np.testing.assert_allclose(losses(workdir), losses(unbroken), rtol=1e-4)
        assert losses(workdir)[:6] == losses(unbroken)[:6]

    @pytest.mark.nightly
    def test_after_kills_at_any_moment_is_bit_for_bit_the_same(
        self, traces: Path, tmp_path: Path
    ) -> None:
        whole = start(tmp_path / "whole", traces)
        assert whole.wait() == 0, whole.stderr and whole.stderr.read()
        expected = losses(tmp_path / "whole")
        assert len(expected) == 8
        moments, kills = random.Random(0), 0
        while True:
            run = start(tmp_path / "killed", traces)
            if wait_until(run, tmp_path / "killed", moments.randrange(1, 4), moments.random()):
                break
            run.kill()
            run.wait()
            kills += 1
        assert run.returncode == 0
        assert kills >= 2
        assert losses(tmp_path / "killed") == expected

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_after_a_signal_starts_where_it_stopped(
        self,
        number: int,
        unbroken: Path,
        traces: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        run = tmp_path / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Sft, "take_step", signalled_in_third(Sft.take_step, number))
            assert sft(run, traces, "--checkpoint.every=1000") == 128 + number
        assert "after step 3 of 8, saved; the same command goes on" in capsys.readouterr().err
        assert (run / "checkpoints" / "3").is_dir()
        assert losses(run) == losses(unbroken)[:3]
        assert sft(run, traces, "--checkpoint.every=1000") == 0
        assert losses(run) == losses(unbroken)

    def test_from_a_damaged_checkpoint_takes_the_one_before(
        self,
        unbroken: Path,
        traces: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        workdir = tmp_path / "run"
        shutil.copytree(unbroken, workdir)
        for file in (workdir / "checkpoints" / "8" / "weights").rglob("*"):
            if file.is_file() and file.stat().st_size > 1000:
                file.write_bytes(file.read_bytes()[:100])
        assert sft(workdir, traces) == 0
        said = capsys.readouterr().err
        assert "checkpoints/8 is damaged" in said and "going on after step 6" in said
        assert losses(workdir) == losses(unbroken)
        assert (workdir / "checkpoints" / "8.damaged").is_dir()


def signalled_in_third(take_step: Any, number: int) -> Any:
    """A step that sends this process a signal when it is taken for the third time."""
    taken = 0

    def signalled(*given: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 3:
            os.kill(os.getpid(), number)
        return take_step(*given)

    return signalled


def start(workdir: Path, traces: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "rmr1_jax.main", *OPTIONS, f"--workdir={workdir}"]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*command, f"--data.train={traces}", "--checkpoint.every=1", *more],
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    )


def wait_until(run: "subprocess.Popen[str]", workdir: Path, steps: int, then: float) -> bool:
    """Until so many more steps are written, and some seconds; True if the run ends before."""
    before = None
    while run.poll() is None:
        now = len(read_metrics(workdir))
        # A run that goes on first drops the records after its checkpoint.
        before = now if before is None else min(before, now)
        if now >= before + steps:
            time.sleep(then)
            return run.poll() is not None
        time.sleep(0.02)
    return True


class TestLora:
    def test_trains_adapters_that_can_be_merged_and_exported(
        self, unbroken: Path, traces: Path, tmp_path: Path
    ) -> None:
        run, hf = tmp_path / "run", tmp_path / "base"
        convert = ["--stage=convert", f"--input={unbroken}", f"--output={hf}", "--to=huggingface"]
        assert main(convert) == 0
        lora = (f"--model={hf}", "--lora.rank=2", "--lora.targets=query,down", "--max_steps=2")
        assert sft(run, traces, *lora) == 0
        base, merged = (dict(flatten(load_model(path)[1])) for path in (hf, run))
        assert base.keys() == merged.keys()
        changed = {name for name, leaf in base.items() if not np.array_equal(leaf, merged[name])}
        assert changed == {"layers/attention/query/kernel", "layers/mlp/down/kernel"}
        to_peft = ["--stage=convert", f"--input={run}", f"--output={tmp_path / 'peft'}"]
        assert main([*to_peft, "--to=peft"]) == 0
        described = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
        assert (described["r"], described["target_modules"]) == (2, ["q_proj", "down_proj"])

    def test_a_whole_model_has_no_adapters_to_export(
        self, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["--stage=convert", f"--input={unbroken}", f"--output={tmp_path / 'x'}"]
        assert main([*command, "--to=peft"]) == 2
        assert "holds a whole model and no adapters" in capsys.readouterr().err


class TestBadInput:
    """One line that names what is wrong; nothing is written over."""

    def refused(
        self, capsys: pytest.CaptureFixture[str], workdir: Path, traces: Path, *more: str
    ) -> str:
        assert sft(workdir, traces, *more) == 2
        return capsys.readouterr().err

    def test_a_workdir_of_another_run(
        self, unbroken: Path, traces: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = contents(unbroken)
        said = self.refused(capsys, unbroken, traces, "--batch_size=32")
        assert "--batch_size: 16 there, 32 now" in said
        assert contents(unbroken) == before

    def test_checkpoints_of_another_model(
        self, unbroken: Path, traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        workdir = tmp_path / "run"
        shutil.copytree(unbroken, workdir)
        with pytest.MonkeyPatch.context() as patch:
            other = "rmr1_jax.stages.sft_stage.toy_model"
            patch.setattr(other, lambda: wider_model())
            said = self.refused(capsys, workdir, traces)
        assert "weights are those of another model" in said and "misshapen" in said
        assert (workdir / "checkpoints" / "8").is_dir()

    def test_a_learning_rate_that_ends_in_nothing_finite(
        self, traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        extreme = ("--optimizer.learning_rate=1e38", "--optimizer.warmup=0")
        said = self.refused(capsys, tmp_path / "run", traces, *extreme)
        assert "was not finite in 3 updates in a row" in said
        assert "traces.jsonl/self-made-0-" in said  # the batch, by the ids of its examples

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (("--data.held_out=500",), "holds out 500 of 200 traces"),
            (("--data.max_length=16", "--data.pack_length=16"), "raise max_length"),
            (("--data.pack_length=32",), "pack_length=32 is shorter than the longest sequence"),
            (("--mesh=fsdp=3",), "mesh data=1,fsdp=3,tensor=1 does not fit"),
            (("--batch_size=4000",), "lower batch_size"),
            (("--lora.rank=2",), "adapters adapt a trained model"),
            (("--loss=mean",), "--loss=mean is unknown; choose one of sequence_mean, token_mean"),
            (("--model=nowhere",), "--model=nowhere: there is no such directory"),
            (("--data.train=nowhere.jsonl",), "nowhere.jsonl: there is no such file or directory"),
            (("--validation.judge=nowhere", "--validation.every=1"), "nowhere"),
        ],
    )
    def test_options_that_cannot_work(
        self,
        more: tuple[str, ...],
        message: str,
        traces: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert message in self.refused(capsys, tmp_path / "run", traces, *more)

    def test_that_is_mended_does_not_need_another_workdir(
        self, pairs: Path, traces: Path, tmp_path: Path
    ) -> None:
        assert sft(tmp_path / "run", pairs, "--max_steps=1") == 2
        assert sft(tmp_path / "run", traces, "--max_steps=1") == 0

    def test_a_file_without_traces(
        self, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        said = self.refused(capsys, tmp_path / "run", pairs)
        assert "holds no traces" in said and "traces.rejects.jsonl" in said

    def test_traces_that_changed_under_a_run(
        self, traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        mine = tmp_path / "mine"
        shutil.copytree(traces, mine)
        assert sft(tmp_path / "run", mine, "--max_steps=1") == 0
        with (mine / "traces.jsonl").open("a") as file:
            file.write("\n")
        assert "has changed since this run began" in self.refused(
            capsys, tmp_path / "run", mine, "--max_steps=1"
        )


def wider_model() -> Any:
    from dataclasses import replace

    from rmr1_jax.models.presets import toy_model

    model = toy_model()
    return replace(model, intermediate_size=2 * model.intermediate_size)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
