"""Traces are read where they lie, and a run is resumed with those that it began with only."""

import json
from pathlib import Path

import pytest

from rmr1_jax.data.example import Example
from rmr1_jax.data.preference_store import StoreWriter
from rmr1_jax.data.traces import open_traces
from rmr1_jax.errors import UserError
from rmr1_jax.judging import JudgePrompt, reasoning


def released(number: int, *, system: str | None = None) -> dict[str, object]:
    """A record as gaotang/RM-R1-Distill-SFT has them."""
    messages = [{"role": "user", "content": f"question {number}"}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    trace = f"because {number} <answer>[[A]]</answer>"
    return {"id": f"number {number}", "context_messages": messages, "winner": trace}


def write(path: Path, *records: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_a_file_gives_its_traces_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "some.jsonl", *(released(number) for number in range(3)))
    traces = open_traces(path, tmp_path / "traces.json")
    for _ in range(2):
        read = list(traces.read())
        assert [example.trace for example in read] == [
            f"because {number} <answer>[[A]]</answer>" for number in range(3)
        ]
    assert traces.rejected == 0 and not traces.rejects.exists()


def test_what_synthesize_wrote_is_found_in_its_directory(tmp_path: Path) -> None:
    write(tmp_path / "traces.jsonl", released(0))
    write(tmp_path / "rejects.jsonl", {"id": "no trace"})
    traces = open_traces(str(tmp_path), tmp_path / "traces.json")
    assert len(list(traces.read())) == 1 and traces.rejected == 0


def test_a_prepared_directory_keeps_its_ids(tmp_path: Path, traced: list[Example]) -> None:
    with StoreWriter(tmp_path / "store", "traces", 8) as writer:
        for example in traced:
            writer.split("train").append(example)
        writer.finish({})
    traces = open_traces(str(tmp_path / "store"), tmp_path / "traces.json")
    assert list(traces.read()) == traced
    assert traces.prompt == JudgePrompt("chain_of_rubrics", "Judge.")


@pytest.mark.parametrize(
    ("system", "prompt"),
    [(None, reasoning()), ("Judge.", JudgePrompt("chain_of_rubrics", "Judge."))],
)
def test_the_prompt_is_the_one_they_answer(
    system: str | None, prompt: JudgePrompt, tmp_path: Path
) -> None:
    path = write(tmp_path / "some.jsonl", released(0, system=system))
    for _ in range(2):  # the second time from the run's record
        assert open_traces(path, tmp_path / "traces.json").prompt == prompt


def test_records_that_are_no_traces_are_counted_once(tmp_path: Path) -> None:
    verdict = released(1) | {"winner": "model_a"}
    path = write(tmp_path / "some.jsonl", verdict, released(0), released(0))
    traces = open_traces(path, tmp_path / "traces.json")
    for _ in range(2):
        assert [example.id for example in traces.read()] == ["some.jsonl/number 0"]
        assert traces.rejected == 2
    reasons = [json.loads(line)["reason"] for line in traces.rejects.read_text().splitlines()]
    assert "distil it with --stage=synthesize" in reasons[0]
    assert "is given twice" in reasons[1]


def test_none_at_all_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "some.jsonl", released(0) | {"winner": "model_a"})
    with pytest.raises(UserError, match=r"holds no traces: see .*traces\.rejects\.jsonl"):
        open_traces(path, tmp_path / "traces.json")
    assert not (tmp_path / "traces.json").exists()


def test_others_than_the_run_began_with_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "some.jsonl", released(0))
    first = open_traces(path, tmp_path / "traces.json").fingerprint
    assert open_traces(path, tmp_path / "traces.json").fingerprint == first
    write(tmp_path / "some.jsonl", released(1))
    with pytest.raises(UserError, match="has changed since this run began"):
        open_traces(path, tmp_path / "traces.json")
    assert open_traces(path, tmp_path / "another.json").fingerprint != first
