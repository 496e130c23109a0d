"""What `--stage=grpo` refuses: in one line, before it reads weights, and nothing is lost."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax import pipeline
from rmr1_jax.errors import UserError
from rmr1_jax.toy_task.toy_recipes import toy_grpo
from tests.stages.tiny_grpo import grpo, learnt, write_model, write_pairs

pytestmark = pytest.mark.usefixtures("alone", "compiled_once")

Capture = pytest.CaptureFixture[str]


class TestBeforeAnythingIsRead:
    """Refused by options and small files alone: no weights, nothing compiled."""

    @pytest.fixture(autouse=True)
    def no_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def read(*given: Any, **named: Any) -> None:
            raise AssertionError("weights were read")

        for place in ("starting_point", "reference_weights", "Grpo"):
            monkeypatch.setattr(f"rmr1_jax.stages.grpo_stage.{place}", read)

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (("--rollout.samples=1",), "there must be at least 2"),
            (("--mini_batch=3",), "--mini_batch=3 does not divide --batch_size=4"),
            (("--mini_batch=8",), "--mini_batch=8 does not divide --batch_size=4"),
            (("--rollout.temperature=0",), "--rollout.temperature=0.0 must be above 0"),
            (("--rollout.top_p=0",), "--rollout.top_p=0.0 must be above 0"),
            (("--rollout.max_response=500",), "together pass the 512 tokens"),
            (("--pack_length=64",), "--pack_length=64 does not hold a prompt"),
            (("--data.max_prompt=5",), "--data.max_prompt=5; raise it"),
            (
                ("--batch_size=200", "--mini_batch=200"),
                "there are 12 x 10 epochs",
            ),
            (("--epochs=0",), "--epochs=0.0 must be above 0"),
            (("--mesh=fsdp=3",), "mesh data=1,fsdp=3,tensor=1 does not fit"),
            (("--objective.kl=-1",), "--objective.kl=-1.0 must be at least 0"),
            (("--objective.clip_low=1",), "--objective.clip_low=1.0 must be below 1"),
            (("--objective.ratio=trace",), "choose one of token, sequence"),
            (("--objective.reduction=mean",), "choose one of sequence_mean, pooled_mean"),
            (("--reward.truncated=drop",), "choose one of keep, mask, shape"),
            (("--reward.truncated=shape", "--reward.buffer=99"), "--reward.buffer=99 is longer"),
            (("--reward.function=published",), "write package.module:function"),
            (("--reward.function=no.such:thing",), "no.such cannot be imported"),
            (("--reward.function=json:nothing",), "has no nothing"),
            (("--reference.model=nowhere",), "--reference.model=nowhere: there is no such"),
            (("--model=nowhere",), "--model=nowhere: there is no such directory"),
            (("--model=",), "also name --model=CHECKPOINT"),
            (("--data.train=nowhere.jsonl",), "nowhere.jsonl: there is no such file or directory"),
            (("--data.train=",), "also name --data.train=PAIRS"),
            (("--lora.rank=2", "--lora.targets=head"), "head"),
            (("--validation.judge=nowhere", "--validation.every=1"), "nowhere"),
        ],
    )
    def test_options_that_cannot_work(
        self,
        more: tuple[str, ...],
        message: str,
        tiny_model: Path,
        tiny_pairs: Path,
        tmp_path: Path,
        capsys: Capture,
    ) -> None:
        assert grpo(tmp_path / "run", tiny_model, tiny_pairs, *more) == 2
        self.refused_with(message, capsys)

    def test_a_reference_of_another_architecture(
        self, tiny_model: Path, tiny_pairs: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        other = write_model(tmp_path / "other", intermediate_size=96)
        options = (f"--reference.model={other}",)
        assert grpo(tmp_path / "run", tiny_model, tiny_pairs, *options) == 2
        assert f"--reference.model={other} is not of the architecture" in capsys.readouterr().err

    def test_a_tokenizer_without_a_token_that_ends_an_answer(
        self, tiny_pairs: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        model = write_model(tmp_path / "model", eos_token_id=None)
        settings = json.loads((model / "tokenizer_config.json").read_text())
        del settings["eos_token"]
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
        assert grpo(tmp_path / "run", model, tiny_pairs) == 2
        self.refused_with("names no token that ends an answer (eos_token)", capsys)

    def test_pairs_without_labels(self, tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
        pairs = write_pairs(tmp_path / "pairs.jsonl", label=False)
        assert grpo(tmp_path / "run", tiny_model, pairs) == 2
        self.refused_with("(the first: label: is missing; say which response won", capsys)

    @staticmethod
    def refused_with(message: str, capsys: Capture) -> None:
        said = capsys.readouterr().err.strip()
        assert message in said
        assert said.startswith("error: ") and "\n" not in said


REWARD = """
import math

calls = 0

def reward(sampled):
    global calls
    calls += 1
    return {bad} if calls == {at} else float(len(sampled.response) % 2)
"""


class TestARewardFunctionThatFails:
    """It is named with its sample; what was learnt is kept, and the run goes on once mended."""

    @pytest.fixture
    def command(
        self, tiny_model: Path, tiny_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Any:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)

        def run(workdir: str, bad: str = "0", at: int = 0) -> int:
            from sys import modules

            (tmp_path / "mine.py").write_text(REWARD.format(bad=bad, at=at))
            shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
            modules.pop("mine", None)
            options = ("--reward.function=mine:reward", "--mini_batch=4")
            return grpo(tmp_path / workdir, tiny_model, tiny_pairs, *options)

        return run

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ("math.nan", "it returned nan, which is not a finite number"),
            ("'good'", "it returned 'good', which is not a finite number"),
            ("1 / 0", "it raised ZeroDivisionError: division by zero"),
        ],
    )
    def test_stops_the_run_clean(
        self, bad: str, message: str, command: Any, tmp_path: Path, capsys: Capture
    ) -> None:
        assert command("run", bad, at=16 + 6) == 2  # the second step: its prompt 1, sample 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("error: reward function reward, sample 1 of prompt pairs.jsonl/")
        assert message in said and "mend the function" in said
        assert len(learnt(tmp_path / "run")) == 1
        assert (tmp_path / "run" / "checkpoints" / "1").is_dir()

    def test_and_goes_on_when_it_is_mended(
        self, command: Any, tmp_path: Path, capsys: Capture
    ) -> None:
        assert command("whole") == 0
        assert command("run", "math.inf", at=16 + 1) == 2
        capsys.readouterr()
        assert command("run") == 0
        assert "going on after step 1 of 2" in capsys.readouterr().err
        assert learnt(tmp_path / "run") == learnt(tmp_path / "whole")


class TestAnotherRun:
    def test_with_other_options_needs_another_directory(
        self, tiny_model: Path, tiny_pairs: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        command = (tmp_path / "run", tiny_model, tiny_pairs)
        assert grpo(*command, "--max_steps=1") == 0
        before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
        capsys.readouterr()
        assert grpo(*command, "--max_steps=1", "--objective.kl=0.5") == 2
        assert "--objective.kl: 0.1 there, 0.5 now" in capsys.readouterr().err
        assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before

    def test_on_data_that_changed_is_refused(
        self, tiny_model: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        pairs = write_pairs(tmp_path / "pairs.jsonl")
        assert grpo(tmp_path / "run", tiny_model, pairs) == 0
        write_pairs(pairs, seed=4)
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
        capsys.readouterr()
        assert grpo(tmp_path / "run", tiny_model, pairs) == 2
        assert "have changed since the checkpoint was written" in capsys.readouterr().err

    def test_that_was_refused_does_not_need_another_directory(
        self, tiny_model: Path, tiny_pairs: Path, tmp_path: Path
    ) -> None:
        assert grpo(tmp_path / "run", tiny_model, tiny_pairs, "--data.max_prompt=5") == 2
        assert grpo(tmp_path / "run", tiny_model, tiny_pairs, "--max_steps=1") == 0


def test_the_toy_start_is_not_trained_before_the_other_options_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"mini_batch=7 does not divide"):
        pipeline.run(replace(toy_grpo(), mini_batch=7))
    assert not list(tmp_path.iterdir())
