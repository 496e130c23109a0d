"""`--stage=demo`: every stage in turn, on little data and for a few steps."""

import io
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from rmr1_jax import demo
from rmr1_jax.config import DemoConfig
from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.record import Record
from rmr1_jax.judging import Problem, Side
from rmr1_jax.main import main
from rmr1_jax.toy_task.toy_recipes import toy_grpo, toy_prepare, toy_sft


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps `main` from changing the whole process."""
    monkeypatch.setattr("rmr1_jax.main.quiet_libraries", lambda: None)
    monkeypatch.setattr("rmr1_jax.main.keep_compiled_programs", lambda: None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes with little of everything."""
    recipe = toy_sft()
    recipe = replace(
        recipe,
        batch_size=16,
        micro_batch_size=1,
        data=replace(recipe.data, held_out=10),
        validation=replace(recipe.validation, every=1, pairs=4, max_new_tokens=4),
    )
    prepare = replace(toy_prepare(), toy_task=400)
    second = toy_grpo()
    second = replace(
        second,
        batch_size=4,
        mini_batch=4,
        rollout=replace(second.rollout, samples=2, max_response=4, max_num_seqs=8),
        validation=replace(second.validation, every=1, pairs=4, max_new_tokens=4),
        samples=replace(second.samples, every=1),
    )
    monkeypatch.setattr(demo, "toy_prepare", lambda: prepare)
    monkeypatch.setattr(demo, "toy_sft", lambda: recipe)
    monkeypatch.setattr(demo, "toy_grpo", lambda: second)
    monkeypatch.setattr(demo, "JUDGED", 4)


@pytest.mark.slow
@pytest.mark.usefixtures("alone", "small")
def test_shows_every_stage_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = tmp_path / "demo"
    assert main(["--stage=demo", f"--workdir={workdir}", "--max_steps=2"]) == 0
    out = capsys.readouterr().out
    for stage in ("prepare", "synthesize", "sft", "grpo", "evaluate"):
        assert f"· {stage}: " in out
    for line in ("random weights", "after supervised fine-tuning", "after GRPO"):
        assert f"  {line:30}   0.0% right,   0.0% the same winner in both orders" in out
    for picture in ("sft/curves.png", "grpo/curves.png", "grpo/samples.html", "stages.png"):
        assert (workdir / picture).is_file()
    assert out.count("what the parser found") == 4
    for judge in ("sft", "grpo"):
        output = workdir / "evaluation" / judge
        records = (output / "records" / "preferences.jsonl").read_text().splitlines()
        assert [json.loads(line)["chosen_position"] for line in records] == ["A", "B"] * 4
        assert (output / "report.html").is_file()
    assert (workdir / "evaluation" / "comparison.html").is_file()

    metrics = (workdir / "sft" / "metrics.jsonl").read_bytes()
    assert main(["--stage=demo", f"--workdir={workdir}", "--max_steps=2"]) == 0
    assert (workdir / "sft" / "metrics.jsonl").read_bytes() == metrics
    assert "is prepared already" in capsys.readouterr().err


class TestPanel:
    @staticmethod
    def text(trace: str, verdict: Side | None) -> str:
        item = {
            "conversation": [{"role": "user", "content": "2 + 2?"}],
            "chosen": "4",
            "rejected": "5",
        }
        problem: Problem | None = None if verdict else "truncated"
        record = Record("preferences", "1", 0, "g", None, "A", verdict, problem, 0.0, trace=trace)
        console = Console(file=io.StringIO(), width=100)
        console.print(demo.judgement_panel("1 of 6", item, replace(record, trace_tokens=7)))
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    def test_shows_a_trace_as_it_is_and_what_was_found(self) -> None:
        shown = self.text("[bold]<type>Chat</type><rubric>Tone</rubric>[[A]]", "A")
        assert "[bold]<type>Chat</type><rubric>Tone</rubric>[[A]]" in shown
        assert "Type    Chat" in shown and "Rubric  Tone" in shown
        assert "Solution" not in shown

    @pytest.mark.parametrize(
        ("verdict", "outcome"),
        [
            ("A", "A, as the label A"),
            ("B", "B, against the label A"),
            (None, "none (the trace was cut at --max_new_tokens); the label is A"),
        ],
    )
    def test_holds_the_verdict_against_the_label(self, verdict: Side | None, outcome: str) -> None:
        assert f"Verdict  {outcome}" in self.text("...", verdict)

    def test_says_where_a_trace_was_cut_off(self) -> None:
        assert "trace, 7 tokens" in self.text("...", "A")
        assert "trace, cut off at 7 tokens" in self.text("...", None)


def test_compiling_is_timed_apart() -> None:
    times = demo.Times()
    with times.measure("judging"):
        jax.jit(lambda x: jnp.sin(x) + 41)(jnp.ones(3))
    compiling = times.compiling
    assert compiling > 0 and times.seconds["judging"] > 0
    jax.jit(lambda x: jnp.sin(x) + 42)(jnp.ones(3))
    assert times.compiling == compiling, "nothing is measured any more"
    assert str(times) == f"judging {times.seconds['judging']:.1f}, compiling {compiling:.1f}"


def test_a_training_of_no_steps_is_refused() -> None:
    with pytest.raises(UserError, match="--max_steps=0 must be at least 1"):
        demo.run(DemoConfig(max_steps=0))
