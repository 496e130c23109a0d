"""The first pass: facts about rows, on disk, whatever interrupts it."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmr1_jax.data.decontamination import Benchmarks
from rmr1_jax.data.example import Example
from rmr1_jax.data.scan import RowScanner, Status, row_stats_type, survey
from rmr1_jax.data.sources import Row, RowSource, open_source
from rmr1_jax.data.splits import Choices, make_plan

Reject = tuple[int, str, str]


def pair(number: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"Q{number}", "chosen": f"yes {number}", "rejected": f"no {number}", **fields}


def source_of(path: Path, records: list[Any], **options: Any) -> RowSource:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines))
    return open_source(str(path), **options)


def examiner(
    *sources: RowSource, rejected: list[Reject] | None = None, **options: Any
) -> RowScanner:
    kept: list[Reject] = [] if rejected is None else rejected
    return RowScanner(sources, 42, lambda *reject: kept.append(reject), **options)


def silently(rows: int) -> None:
    pass


def words_in_question(example: Example) -> int:
    assert example.preference is not None
    return len(example.preference.context[0].content.split())


def test_every_row_has_its_status(tmp_path: Path) -> None:
    (tmp_path / "bench.jsonl").write_text('{"prompt": "One two three four five six"}\n')
    source = source_of(
        tmp_path / "pairs.jsonl",
        [
            pair(1, kind="x"),
            "{",
            pair(2, kind="y"),
            pair(3, kind="z"),
            pair(4, rejected=" yes 4"),
            pair(5, prompt="one two three  four five six"),
            pair(6, prompt="one two three four five seven"),
            pair(7, prompt="too long a question to be asked"),
            {"question": "Q", "response_a": "x", "response_b": "y", "label": "C"},
        ],
        exclude={"kind": ("y", "z")},
    )
    rejected: list[Reject] = []
    facts = survey(
        examiner(
            source,
            rejected=rejected,
            benchmarks=Benchmarks([str(tmp_path / "bench.jsonl")], 5),
            length=words_in_question,
            max_tokens=6,
        ),
        tmp_path / "facts",
        silently,
    )
    assert facts["status"].tolist() == [
        Status.USABLE,
        Status.BAD,
        Status.FILTERED,
        Status.FILTERED,
        Status.IDENTICAL,
        Status.SAME_QUESTION,
        Status.SHARED_WORDS,
        Status.TOO_LONG,
        Status.BAD,
    ]
    assert facts["filter"].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert [line for line, _, _ in rejected] == [2, 5, 9]
    assert all(reason.startswith(str(tmp_path / "pairs.jsonl")) for _, reason, _ in rejected)
    assert "two responses are the same" in rejected[1][1]
    assert "label: is 'C'" in rejected[2][1]


def test_the_facts_are_those_of_the_example(tmp_path: Path) -> None:
    rows = [
        pair(1, id="first"),
        {"question": "Q", "response_a": "a", "response_b": "b", "label": "B"},
        {"context_messages": [{"role": "user", "content": "?"}], "winner": "a trace"},
    ]
    one = source_of(tmp_path / "one.jsonl", rows)
    two = source_of(tmp_path / "two.jsonl", rows[:1])
    facts = survey(examiner(one, two, signatures=True), tmp_path / "facts", silently)
    assert facts["source"].tolist() == [0, 0, 0, 1]
    assert facts["label"].tolist()[1:3] == [2, 0]
    assert facts["rendered"].tolist() == [0, 0, 1, 0]
    # The same content, and another id.
    assert facts["content"][0] == facts["content"][3]
    assert len(set(facts["content"].tolist())) == 3
    assert len(set(facts["lot"].tolist())) == 4
    assert np.array_equal(facts["signature"][0], facts["signature"][3])
    # Another seed draws other lots.
    other = replace(examiner(one, two), seed=43)
    again = survey(other, tmp_path / "other", silently)
    assert not set(facts["lot"].tolist()) & set(again["lot"].tolist())


@pytest.mark.parametrize("torn", [0, 1, 700])
def test_an_interrupted_survey_goes_on(tmp_path: Path, torn: int) -> None:
    source = source_of(tmp_path / "pairs.jsonl", [pair(number) for number in range(1000)])
    whole = survey(examiner(source, signatures=True), tmp_path / "whole", silently)
    looked_at: list[int] = []

    def stop_at_600(rows: int) -> None:
        if rows > 600:
            raise KeyboardInterrupt

    file, part = tmp_path / "facts", tmp_path / "facts.part"
    with pytest.raises(KeyboardInterrupt):
        survey(examiner(source, signatures=True), file, stop_at_600)
    assert not file.exists()
    part.write_bytes(part.read_bytes()[: -torn or None])
    left = part.stat().st_size // whole.dtype.itemsize
    facts = survey(examiner(source, signatures=True), file, looked_at.append)
    assert 512 < left <= 768
    assert looked_at[0] == min(left + 256, 1000)  # nothing before `left` is looked at again
    assert facts.tobytes() == whole.tobytes()
    # A whole survey is not made again.
    assert survey(examiner(signatures=True), file, silently).tobytes() == whole.tobytes()


def test_memory_does_not_grow_with_the_records(tmp_path: Path) -> None:
    text = "some words of a question that is not short " * 6

    def rows(count: int) -> Iterator[Row]:
        for number in range(count):
            raw = {"prompt": f"{number} {text}", "chosen": f"{number} {text}", "rejected": text}
            yield Row("made", number, raw, str(number))

    def peak(count: int) -> int:
        source = RowSource("made", lambda: rows(count))
        tracemalloc.start()
        facts = survey(examiner(source), tmp_path / f"facts {count}", silently)
        choices = Choices("alternate", 0.02, 0.12, True, 0.0, {})
        assert make_plan(facts, choices).kept == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(500)  # imports, caches
    # A record is 800 bytes of text.
    assert (peak(20_000) - peak(2_000)) / 18_000 < 120


def test_a_row_takes_few_bytes() -> None:
    assert row_stats_type(signatures=False).itemsize == 23
    assert row_stats_type(signatures=True).itemsize == 23 + 512
