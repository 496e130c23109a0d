"""`--stage=judge` in two processes: they share the traces, one writes the verdicts."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Ended, run_job
from tests.stages.tiny_grpo import write_model, write_pairs

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge processes")
    write_model(folder / "model")
    pairs = write_pairs(folder / "pairs.jsonl")
    with pairs.open("a") as file:
        file.write('{"question": "no responses"}\n')
    return folder


def start(folder: Path, output: str, processes: int, *more: str) -> list[Ended]:
    options = [
        "--stage=judge",
        f"--model={folder / 'model'}",
        f"--input={folder / 'pairs.jsonl'}",
        f"--output={folder / output}",
        "--max_new_tokens=12",
        "--temperature=1",
        "--max_num_seqs=4",
        "--mesh=data=2",
    ]
    return run_job([*options, *more], processes, 2 // processes)


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) | {"logprob": 0} for line in file.read_text().splitlines()]


def test_write_what_one_writes_and_resume(folder: Path) -> None:
    alone, together = start(folder, "alone.jsonl", 1), start(folder, "together.jsonl", 2)
    assert [end.status for end in alone + together] == [1, 1, 1], together  # a line is no pair
    assert "1 line is no pair" in together[0].err and "no pair" not in together[1].err
    assert len((folder / "together.rejects.jsonl").read_text().splitlines()) == 1
    expected = records(folder / "alone.jsonl")
    assert len(expected) == 12 and any(record["trace"] for record in expected)
    assert records(folder / "together.jsonl") == expected

    lines = (folder / "together.jsonl").read_text().splitlines(keepends=True)
    (folder / "together.jsonl").write_text("".join(lines[:5]))
    ended = start(folder, "together.jsonl", 2)
    assert [end.status for end in ended] == [1, 1]
    assert "5 of 12 pairs are judged already" in ended[0].err
    assert records(folder / "together.jsonl") == expected


def test_are_told_of_the_error_that_only_the_first_meets(folder: Path) -> None:
    start(folder, "told.jsonl", 1)
    ended = start(folder, "told.jsonl", 2, "--temperature=0.5")
    assert [end.status for end in ended] == [2, 2]
    assert "temperature: 1.0 there, 0.5 now" in ended[0].err
    assert "cannot be used; the first process says why" in ended[1].err
