"""`--stage=judge`, driven as a user drives it, with a fake judge in the place of the model."""

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest

from rmr1_jax.judging import Preference, preference_from_record
from rmr1_jax.main import main
from rmr1_jax.stages import judge_stage


def test_records_come_in_input_order_whatever_is_finished_first(
    stage: Any, fake_judge: Any
) -> None:
    pairs = [stage.pair(n, response_a="slow" if n in (0, 7) else f"yes {n}") for n in range(20)]
    assert stage.run(pairs) == 0
    assert fake_judge.judged != [p["id"] for p in pairs], "the fake judge should disturb the order"
    assert stage.ids() == [p["id"] for p in pairs]


def test_a_record_has_the_documented_fields(stage: Any) -> None:
    stage.run([stage.pair(1)])
    assert list(stage.records()[0]) == [
        "id", "verdict", "problem", "type", "rubric", "solution", "evaluation", "trace",
        "prompt_tokens", "trace_tokens", "finish_reason", "logprob",
    ]  # fmt: skip


def test_labels_give_correct_and_accuracy(stage: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stage.run(
        [
            stage.pair(1, label="A"),
            stage.pair(2, label="B"),
            stage.pair(3),
            stage.pair(4, response_a="none", label="A"),
        ]
    )
    first, second, unlabelled, void = stage.records()
    assert first["correct"] == (first["verdict"] == "A")
    assert second["correct"] == (second["verdict"] == "B")
    assert "correct" not in unlabelled and "label" not in unlabelled
    assert void["correct"] is False
    assert f"({first['correct'] + second['correct']} of 3 labelled)" in capsys.readouterr().out


def test_the_summary_counts_verdicts_and_problems(
    stage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.run(
        [stage.pair(n, response_a=a) for n, a in enumerate(["none", "both", "truncated", "yes"])]
    )
    assert [record["problem"] for record in stage.records()] == [
        "none",
        "both",
        "truncated",
        None,
    ]
    out = capsys.readouterr().out
    assert "4 pairs: A " in out and "none 1, both 1, truncated 1" in out
    assert "40 tokens" in out and "tokens/s" in out


def test_the_prompt_is_named_with_its_hash_and_recorded(
    stage: Any, fake_judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.run([stage.pair(1)])
    line = f"chain_of_rubrics, SHA-256 {fake_judge.prompt.sha256} (the default)"
    assert line in capsys.readouterr().err
    info = json.loads((stage.info).read_text())
    assert info["settings"]["prompt_sha256"] == fake_judge.prompt.sha256
    assert info["prompt_source"] == "the default"


def test_options_reach_the_judge(stage: Any, fake_judge: Any) -> None:
    stage.run(
        [stage.pair(1)],
        "--prompt=reasoning",
        "--max_num_seqs=3",
        "--max_context=99",
        "--dtype=float32",
    )
    assert fake_judge.loads == [
        {
            "path": str(stage.model),
            "prompt": "reasoning",
            "mesh": "",
            "dtype": "float32",
            "max_num_seqs": 3,
            "max_context": 99,
        }
    ]


class TestVotesAndSwap:
    def test_votes_take_the_majority_and_the_first_trace_that_agrees(self, stage: Any) -> None:
        stage.run([stage.pair(n) for n in range(12)], "--votes=3", "--temperature=1")
        counts = {tuple(record["votes"].values()) for record in stage.records()}
        assert {(1, 2, 0), (2, 1, 0)} <= counts, "the pairs should divide the votes"
        for record in stage.records():
            votes = record["votes"]
            assert record["verdict"] == ("A" if votes["A"] > votes["B"] else "B")
            assert f"[[{record['verdict']}]]" in record["trace"]

    def test_swap_gives_a_verdict_only_where_both_orders_agree(
        self, stage: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stage.run([stage.pair(n) for n in range(12)], "--swap")
        consistent = [record for record in stage.records() if record["consistent"]]
        assert 0 < len(consistent) < 12, "the pairs should divide the orders"
        for record in stage.records():
            first = "A" if "[[A]]" in record["trace"] else "B"
            second = "B" if "[[A]]" in record["swapped_trace"] else "A"
            assert record["swapped_verdict"] == second
            assert record["consistent"] == (first == second)
            assert record["verdict"] == (first if first == second else None)
            assert record["problem"] is None
        assert f"same verdict in both orders {len(consistent)} of 12" in capsys.readouterr().out

    def test_more_votes_at_temperature_zero_are_refused(
        self, stage: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert stage.run([stage.pair(1)], "--votes=3") == 2
        assert "--votes=3 needs --temperature above 0" in capsys.readouterr().err


class TestOnePair:
    @staticmethod
    def ask(stage: Any, *options: str, a: str = "yes", b: str = "no") -> int:
        pair = ["--question=Q?", f"--response_a={a}", f"--response_b={b}"]
        return main(["--stage=judge", f"--model={stage.model}", *pair, *options])

    def test_is_streamed_and_ends_with_the_verdict(
        self, stage: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.ask(stage) == 0
        trace, verdict = capsys.readouterr().out.splitlines()
        assert trace.startswith("<type>Chat</type>")
        assert verdict == f"Verdict: {'A' if '[[A]]' in trace else 'B'}"

    def test_without_a_verdict_says_why(
        self, stage: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.ask(stage, a="none") == 0
        assert "Verdict: none (the trace names neither response)" in capsys.readouterr().out
        assert self.ask(stage, a="too long") == 1
        assert "the prompt does not fit the context" in capsys.readouterr().out

    def test_both_orders_and_votes(self, stage: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.ask(stage, "--swap", "--votes=3", "--temperature=1") == 0
        out = capsys.readouterr().out
        assert out.count("<type>Chat</type>") == 6
        assert out.index("--- As given") < out.index("--- Swapped") < out.index("Verdict: ")

    def test_needs_both_responses(self, stage: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.ask(stage, b="") == 2
        assert "also needs --response_b" in capsys.readouterr().err


def test_a_slow_pair_holds_back_a_bounded_number_of_others(stage: Any, fake_judge: Any) -> None:
    slow_first = [stage.pair(n, response_a="slow" if n == 0 else "yes") for n in range(50)]
    preferences = [preference_from_record(record, default_id="") for record in slow_first]
    read: list[Preference] = []

    def reading() -> Iterator[Preference]:
        for preference in preferences:
            read.append(preference)
            yield preference

    ordered = judge_stage.in_input_order(
        fake_judge,
        reading(),
        judge_stage.JudgeConfig(),
        samples=1,
        swap=True,
        first_index=0,
        max_unwritten=8,
    )
    written = [next(ordered)[0]]
    assert len(read) == 8
    written += [preference for preference, _ in ordered]
    assert written == preferences


def test_the_fake_judge_is_called_as_the_real_one_is(fake_judge: Any) -> None:
    fake = sys.modules.pop("rmr1_jax.sampling.judge")
    real = importlib.import_module("rmr1_jax.sampling.judge")
    for name in ("Judgement", "Progress"):
        known = {field.name for field in fields(getattr(real, name))}
        assert {field.name for field in fields(getattr(fake, name))} <= known
    for method in ("judge", "stream"):
        known = set(inspect.signature(getattr(real.Judge, method)).parameters)
        assert set(inspect.signature(getattr(fake_judge, method)).parameters) <= known
    load = inspect.signature(real.Judge.load).parameters
    assert {"prompt", "mesh", "dtype", "max_num_seqs", "max_context"} <= set(load)
