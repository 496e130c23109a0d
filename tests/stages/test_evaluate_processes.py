"""`--stage=evaluate` over two processes, as a pod slice has them: shared work, one that writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import MAIN, Ended, run_job
from tests.stages.tiny_grpo import write_model, write_pairs

pytestmark = pytest.mark.slow

# The first process is killed after three records, and takes the other with it.
IS_KILLED = """
import os, signal, sys
from rmr1_jax.data.record_log import RecordLog
from rmr1_jax.main import main

append = RecordLog.append

def killed(log, record):
    append(log, record)
    if log.count == 3:
        os.kill(os.getpid(), signal.SIGKILL)

RecordLog.append = killed
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    return folder


def start(folder: Path, output: str, processes: int, script: str = MAIN) -> list[Ended]:
    options = [
        "--stage=evaluate",
        f"--model={folder / 'model'}",
        "--benchmarks=preferences",
        f"--preferences={folder / 'pairs.jsonl'}",
        f"--output={folder / output}",
        "--order=both",
        "--max_new_tokens=12",
        "--temperature=1",
        "--slots=4",
        "--mesh=data=4",
    ]
    cache = {"RMR1_JAX_CACHE": str(folder / f"programs {processes}")}
    return run_job(options, processes, 4 // processes, script=script, environment=cache)


def records(folder: Path, output: str) -> list[dict[str, Any]]:
    lines = (folder / output / "records" / "preferences.jsonl").read_text().splitlines()
    return [json.loads(line) | {"seconds": 0} for line in lines]


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> list[dict[str, Any]]:
    """The records of two processes that nothing disturbs."""
    assert [end.status for end in start(folder, "together", 2)] == [0, 0]
    return records(folder, "together")


def test_give_the_records_of_one_process(folder: Path, unbroken: list[dict[str, Any]]) -> None:
    assert [end.status for end in start(folder, "alone", 1)] == [0]
    alone, together = records(folder, "alone"), [dict(record) for record in unbroken]
    assert len(alone) == 24 and any(record["trace"] for record in alone)
    for one, two in zip(alone, together, strict=True):
        assert one.pop("confidence", 0) == pytest.approx(two.pop("confidence", 0), abs=1e-5)
        assert one == two
    assert (folder / "together" / "report.html").is_file()


def test_go_on_after_a_kill_of_the_one_that_writes(
    folder: Path, unbroken: list[dict[str, Any]]
) -> None:
    ended = start(folder, "killed", 2, IS_KILLED)
    assert [end.status for end in ended] == [-9, 3]
    assert ended[1].err.splitlines()[-1].startswith("error: process 0 of 2 (")
    partial = folder / "killed" / "records" / "preferences.partial.jsonl"
    assert len(partial.read_text().splitlines()) == 3
    assert [end.status for end in start(folder, "killed", 2)] == [0, 0]
    expected = {(r["id"], r["chosen_position"]): r["trace"] for r in unbroken}
    found = {(r["id"], r["chosen_position"]): r["trace"] for r in records(folder, "killed")}
    assert found == expected
