"""`--stage=evaluate` in two and four processes: all judge, the first writes."""

import json
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest

from tests.evaluation.fake_run import LOGGED, write_fake_run
from tests.processes import LOST_ANOTHER, MAIN, Ended, meets_signal, run_job
from tests.stages.tiny_grpo import write_model, write_pairs

pytestmark = pytest.mark.slow

PAIRS = 40  # in both orders; about sixteen judgements are finished at a time
JUDGED = "rmr1_jax.evaluation.judging_progress:JudgingProgress.pair_done"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", PAIRS)
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
        "--max_num_seqs=4",
        "--mesh=data=4",
    ]
    return run_job(options, processes, 4 // processes, script=script)


def records(folder: Path, output: str) -> list[dict[str, Any]]:
    lines = (folder / output / "records" / "preferences.jsonl").read_text().splitlines()
    return [json.loads(line) | {"seconds": 0} for line in lines]


def traces(folder: Path, output: str) -> dict[tuple[str, str], str]:
    found = records(folder, output)
    assert len(found) == 2 * PAIRS
    return {(record["id"], record["chosen_position"]): record["trace"] for record in found}


def partial(folder: Path, output: str) -> int:
    """The records of a run that has not come to its end."""
    file = folder / output / "records" / "preferences.partial.jsonl"
    return len(file.read_text().splitlines())


def scores(folder: Path, output: str) -> dict[str, Any]:
    """All but how long they took."""

    def timeless(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {k: v for k, v in pairs if k not in ("seconds", "tokens_per_second")}

    file = folder / output / "scores.json"
    found: dict[str, Any] = json.loads(file.read_text(), object_pairs_hook=timeless)
    assert found["preferences"]["overall"]["n"] == PAIRS
    return found


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> str:
    """Where two processes write that nothing disturbs."""
    assert [end.status for end in start(folder, "together", 2)] == [0, 0]
    return "together"


def test_give_the_records_of_one_process(folder: Path, unbroken: str) -> None:
    assert [end.status for end in start(folder, "alone", 1)] == [0]
    alone, together = records(folder, "alone"), records(folder, unbroken)
    assert len(alone) == 2 * PAIRS and any(record["trace"] for record in alone)
    for one, two in zip(alone, together, strict=True):
        assert one.pop("confidence", 0) == pytest.approx(two.pop("confidence", 0), abs=1e-5)
        assert one == two
    assert (folder / "together" / "report.html").is_file()


def test_resume_after_a_kill_of_the_one_that_writes(folder: Path, unbroken: str) -> None:
    ended = start(folder, "killed", 2, meets_signal(SIGKILL, 0, call=3, of=JUDGED))
    assert ended[0].status == -SIGKILL and ended[1].status in LOST_ANOTHER, ended
    assert partial(folder, "killed") == 3
    assert [end.status for end in start(folder, "killed", 2)] == [0, 0]
    assert traces(folder, "killed") == traces(folder, unbroken)


@pytest.mark.nightly
def test_four_come_to_the_same_scores_though_one_is_killed_and_one_asked_to_stop(
    folder: Path, unbroken: str
) -> None:
    # The second time that some are finished: then the first process has written the earlier ones.
    ended = start(folder, "four", 4, meets_signal(SIGKILL, 2, call=17, of=JUDGED))
    assert ended[2].status == -SIGKILL, ended
    assert all(ended[other].status in LOST_ANOTHER for other in (0, 1, 3)), ended
    first = partial(folder, "four")
    assert 0 < first < 2 * PAIRS

    ended = start(folder, "four", 4, meets_signal(SIGTERM, 1, call=17, of=JUDGED))
    assert ended[1].status == -SIGTERM, ended
    assert all(ended[other].status in LOST_ANOTHER for other in (0, 2, 3)), ended
    assert first < partial(folder, "four") < 2 * PAIRS

    assert [end.status for end in start(folder, "four", 4)] == [0] * 4
    assert traces(folder, "four") == traces(folder, unbroken)
    assert scores(folder, "four") == scores(folder, unbroken)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--score_only", "--output=weak"], "report: weak/report.html"),
        (["--compare", "weak", "strong", "--output=both"], "comparison: both/comparison.html"),
        (["--import_logs=logs.json", "--output=imported"], "report: imported/report.html"),
    ],
)
def test_leave_what_judges_nothing_to_the_first(
    tmp_path: Path, options: list[str], said: str
) -> None:
    for seed, name in enumerate(("weak", "strong")):
        write_fake_run(tmp_path / name, seed=seed, benchmarks=("rewardbench",))
    (tmp_path / "logs.json").write_text(json.dumps([LOGGED]))
    inside = f"import os; os.chdir({str(tmp_path)!r})\n{MAIN}"
    first, second = run_job(["--stage=evaluate", *options], 2, 1, script=inside)
    assert first.status == second.status == 0, (first, second)
    assert said in first.out and "html" not in second.out
