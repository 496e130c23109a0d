"""`--stage=grpo` in two and four processes: one of them is killed, or asked to stop."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import numpy as np
import pytest

from rmr1_jax.models.checkpoint import load_model
from rmr1_jax.models.weight_map import flatten
from rmr1_jax.training.metrics import read_metrics
from tests.processes import LOST_ANOTHER, MAIN, Ended, meets_signal, run_job
from tests.stages.tiny_grpo import arguments, learnt, write_model, write_pairs

pytestmark = pytest.mark.slow

DEVICES = 4
STEPS = 3
SAMPLE = "rmr1_jax.rl.rollout:Rollout.sample"
OPTIONS = ("--advantage.dynamic_sampling=True", f"--max_steps={STEPS}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a model, pairs to judge, and the runs."""
    folder = tmp_path_factory.mktemp("processes")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    return folder


def start(
    folder: Path, workdir: str, processes: int, *more: str, script: str = MAIN
) -> list[Ended]:
    """A run with as many devices in so many processes."""
    options = arguments(folder / workdir, folder / "model", folder / "pairs.jsonl", *OPTIONS, *more)
    return run_job(options, processes, DEVICES // processes, script=script)


def succeed(folder: Path, workdir: str, processes: int) -> Path:
    ended = start(folder, workdir, processes)
    assert statuses(ended) == [0] * processes, ended
    return folder / workdir


def statuses(ended: Sequence[Ended]) -> list[int]:
    return [end.status for end in ended]


def checkpoints(workdir: Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def is_near(found: list[Any], expected: list[Any]) -> bool:
    return len(found) == STEPS and np.allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    return succeed(folder, "alone", 1)


@pytest.fixture(scope="module")
def together(folder: Path) -> Path:
    return succeed(folder, "together", 2)


def test_learn_what_one_process_learns_on_the_same_mesh(alone: Path, together: Path) -> None:
    assert is_near(learnt(together), learnt(alone))
    for name in ("reward", "response_tokens", "rounds", "sampled_tokens", "zero_signal"):
        one, two = ([record[name] for record in read_metrics(path)] for path in (alone, together))
        assert one == two, name


def test_write_each_file_once(alone: Path, together: Path) -> None:
    files = {path.name for path in alone.iterdir()}
    assert {path.name for path in together.iterdir()} == files
    traces = [
        [(record["step"], record["trace"]) for record in map(json.loads, path.open())]
        for path in (alone / "samples.jsonl", together / "samples.jsonl")
    ]
    assert traces[0] == traces[1]


def test_leave_a_checkpoint_that_one_process_reads(alone: Path, together: Path) -> None:
    (_, expected), (_, found) = (load_model(path) for path in (alone, together))
    for (name, a), (_, b) in zip(flatten(expected), flatten(found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)


@pytest.mark.nightly
def test_resume_exactly_after_one_is_killed(folder: Path, together: Path) -> None:
    """In the third rollout: then the first checkpoint is whole, and the second perhaps."""
    ended = start(folder, "killed", 2, script=meets_signal(SIGKILL, 1, call=3, of=SAMPLE))
    assert ended[0].status in LOST_ANOTHER and ended[1].status == -SIGKILL, ended
    assert learnt(folder / "killed") == learnt(together)[:2]
    ended = start(folder, "killed", 2)
    assert statuses(ended) == [0, 0]
    assert re.search("going on after step [12] of 3", ended[0].err)
    assert learnt(folder / "killed") == learnt(together)


@pytest.mark.nightly
def test_all_save_the_same_step_where_one_is_asked_to_stop(folder: Path, together: Path) -> None:
    """It is asked while the second step samples, which is given up."""
    script = meets_signal(SIGTERM, 1, call=2, of=SAMPLE)
    ended = start(folder, "asked", 2, "--checkpoint.every=100", script=script)
    assert statuses(ended) == [143, 143], ended
    assert f"stopped by signal 15 after step 1 of {STEPS}, saved" in ended[0].err
    assert checkpoints(folder / "asked") == {"1"}
    assert learnt(folder / "asked") == learnt(together)[:1]
    assert learnt(succeed(folder, "asked", 2)) == learnt(together)


@pytest.mark.nightly
def test_four_learn_the_same_though_one_is_asked_to_stop_and_one_is_killed(
    folder: Path, alone: Path
) -> None:
    script = meets_signal(SIGTERM, 3, call=2, of=SAMPLE)
    ended = start(folder, "four", 4, "--checkpoint.every=100", script=script)
    assert statuses(ended) == [143] * 4, ended
    assert f"stopped by signal 15 after step 1 of {STEPS}, saved" in ended[0].err
    assert checkpoints(folder / "four") == {"1"}

    # The first rollout of those that go on is that of the second step.
    ended = start(folder, "four", 4, script=meets_signal(SIGKILL, 2, call=2, of=SAMPLE))
    assert ended[2].status == -SIGKILL, ended
    assert all(ended[other].status in LOST_ANOTHER for other in (0, 1, 3)), ended
    assert len(learnt(folder / "four")) == 2

    assert is_near(learnt(succeed(folder, "four", 4)), learnt(alone))
