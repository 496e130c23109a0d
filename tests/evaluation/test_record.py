"""One line of a log: what it must say, what may be left out, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.record import Record, grade, read_records, record_from_json

LINE: dict[str, Any] = {
    "benchmark": "rewardbench",
    "id": "3692",
    "index": 7,
    "group": "math-prm",
    "cell": None,
    "chosen_position": "B",
    "verdict": "B",
    "problem": None,
    "correct": 1,
    "trace": "<answer>[[B]]</answer>",
    "prompt_tokens": 10,
    "trace_tokens": 5,
    "seconds": 0.25,
}
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
records = st.builds(
    Record,
    benchmark=st.just("rmb"),
    id=texts,
    index=st.integers(0, 10**6),
    group=texts,
    cell=st.none() | st.tuples(st.integers(0, 2) | texts, st.integers(0, 2)),
    chosen_position=st.sampled_from("AB"),
    verdict=st.none(),
    problem=st.sampled_from(["none", "both", "truncated", "prompt_too_long"]),
    correct=st.just(0.0),
    trace=st.none() | texts,
    seconds=st.none() | st.floats(0, 1e6),
    sample=st.integers(0, 8),
    confidence=st.none() | st.floats(0, 1),
    forced=st.booleans(),
    prompt=st.none() | texts,
)


@given(records)
def test_a_record_is_its_line(record: Record) -> None:
    assert record_from_json(json.loads(json.dumps(record.to_json()))) == record


def test_a_line_has_the_fields_of_the_contract_in_their_order() -> None:
    assert list(record_from_json(LINE).to_json()) == list(LINE)
    assert record_from_json(LINE).to_json() == LINE


class TestWithoutAVerdict:
    def test_the_trace_tells_it(self) -> None:
        for trace, verdict, problem, correct in (
            ("[[A]]", "A", None, 0),
            ("so [[B]]", "B", None, 1),
            ("[[A]] [[B]]", None, "both", 0),
            ("neither", None, "none", 0),
        ):
            line = {name: LINE[name] for name in LINE if name not in ("verdict", "correct")}
            record = record_from_json({**line, "trace": trace})
            assert (record.verdict, record.problem, record.correct) == (verdict, problem, correct)

    def test_a_null_verdict_gets_its_reason_from_the_trace(self) -> None:
        line = {**LINE, "verdict": None, "correct": 0, "trace": "[[A]] [[B]]"}
        assert record_from_json(line).problem == "both"

    def test_a_trace_that_was_cut_stays_truncated(self) -> None:
        line = {name: LINE[name] for name in LINE if name not in ("verdict", "correct")}
        record = record_from_json({**line, "trace": "and", "problem": "truncated"})
        assert record.problem == "truncated"

    def test_and_without_a_trace_correct_is_taken(self) -> None:
        line = {name: LINE[name] for name in LINE if name not in ("verdict", "trace")}
        assert record_from_json({**line, "correct": 0.5}).correct == 0.5
        del line["correct"]
        with pytest.raises(UserError, match=r"verdict: is missing, and so are trace and correct"):
            record_from_json(line)


@pytest.mark.parametrize(
    ("verdict", "position", "published", "rewardbench"),
    [("A", "A", 1, 1), ("B", "A", 0, 0), ("B", "B", 1, 1), (None, "A", 0, 0.5)],
)
def test_grades(verdict: Any, position: Any, published: float, rewardbench: float) -> None:
    assert grade(verdict, position) == published
    assert grade(verdict, position, "rewardbench") == rewardbench


def test_the_rule_that_is_asked_for_decides_what_no_verdict_is_worth() -> None:
    line = {**LINE, "verdict": None, "problem": "none", "correct": 0.5}
    assert record_from_json(line).correct == 0
    assert record_from_json({**line, "correct": 0}, "rewardbench").correct == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": 0}, "correct: is 0, but verdict B where the chosen response is B scores 1"),
        ({"verdict": "C"}, 'verdict: is "C"; it must be one of A, B, null'),
        ({"verdict": None, "correct": 1}, "correct: is 1, but verdict null"),
        ({"chosen_position": None}, "chosen_position: is missing; it must be one of A, B"),
        ({"id": None}, "id: is missing"),
        ({"index": "7"}, 'index: is "7"; it must be a whole number'),
        ({"index": True}, "index: is true; it must be a whole number"),
        ({"index": -1}, "index: is -1; it must be 0 or more"),
        ({"seconds": float("nan")}, "seconds: is nan; it must be 0 or more"),
        ({"confidence": 97}, "confidence: is 97; it must be 0 to 1"),
        ({"group": None}, "group: is missing"),
        ({"cell": [1]}, r"cell: is \[1\]; it must be"),
        ({"correct": 2}, "correct: is 2; it must be 0, 0.5 or 1"),
        ({"problem": "tired"}, 'problem: is "tired"; it must be one of none, both'),
        ({"trace": 3}, "trace: is 3; it must be a text"),
    ],
)
def test_what_is_no_record_is_refused_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        record_from_json({**LINE, **change})


class TestAFile:
    def read(self, tmp_path: Path, *lines: Any) -> list[Record]:
        path = tmp_path / "rewardbench.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return read_records(path, "rewardbench")

    def test_is_read_in_order(self, tmp_path: Path) -> None:
        read = self.read(
            tmp_path, LINE, {**LINE, "index": 3}, {**LINE, "chosen_position": "A", "correct": 0}
        )
        assert [record.index for record in read] == [7, 3, 7]

    def test_names_the_line(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"rewardbench\.jsonl, line 2: group: is missing"):
            self.read(tmp_path, LINE, {**LINE, "index": 8, "group": None})
        with pytest.raises(UserError, match=r"line 1: is no record"):
            self.read(tmp_path, [1, 2])

    def test_of_two_runs_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"lines 1 and 3: .* records of two runs"):
            self.read(tmp_path, LINE, {**LINE, "index": 8}, LINE)

    def test_of_another_benchmark_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"line 1: benchmark: is 'rmb'; this file holds"):
            self.read(tmp_path, {**LINE, "benchmark": "rmb"})

    def test_that_was_cut_short_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "rewardbench.jsonl"
        path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE)[:40])
        with pytest.raises(UserError, match=r"rewardbench\.jsonl, line 2: "):
            read_records(path, "rewardbench")
