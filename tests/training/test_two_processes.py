"""A whole run of `--stage=grpo` over two processes, as a pod slice has them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rmr1_jax.models.checkpoint import load_model
from rmr1_jax.models.tensors import flatten
from rmr1_jax.training.metrics import read_metrics
from tests.processes import run_job, run_processes
from tests.stages.tiny_grpo import arguments, learnt, write_model, write_pairs

pytestmark = pytest.mark.slow

SCRIPT = "import sys; from rmr1_jax.main import main; sys.exit(main(sys.argv[1:]))"
# One of the processes is asked to stop while its second rollout samples.
IS_STOPPED = """
import os, signal, sys
import jax
from rmr1_jax.main import main
from rmr1_jax.training.rollout import Rollout

calls, sample = 0, Rollout.sample

def interrupted(*given, **options):
    global calls
    calls += 1
    if calls == 2 and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return sample(*given, **options)

Rollout.sample = interrupted
print(main(sys.argv[1:]))
"""
# One of them is killed there.
IS_KILLED = IS_STOPPED.replace("SIGTERM", "SIGKILL")
OPTIONS = ("--advantage.dynamic_sampling=True", "--max_steps=3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a model, pairs to judge, and the runs."""
    folder = tmp_path_factory.mktemp("processes")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    return folder


def start(folder: Path, workdir: str, processes: int, script: str, *more: str) -> list[str]:
    """Eight devices in so many processes. Returns what each has printed."""
    options = arguments(folder / workdir, folder / "model", folder / "pairs.jsonl", *OPTIONS, *more)
    cache = {"RMR1_JAX_CACHE": str(folder / f"programs {processes}")}
    return run_processes(script, processes, 8 // processes, arguments=options, environment=cache)


def run(folder: Path, workdir: str, processes: int) -> Path:
    start(folder, workdir, processes, SCRIPT)
    return folder / workdir


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    return run(folder, "alone", 1)


@pytest.fixture(scope="module")
def together(folder: Path) -> Path:
    return run(folder, "together", 2)


def test_learn_what_one_process_learns_on_the_same_mesh(alone: Path, together: Path) -> None:
    expected, found = learnt(alone), learnt(together)
    assert len(found) == 3
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
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


def test_go_on_where_they_were(folder: Path, together: Path) -> None:
    workdir = folder / "in parts"
    shutil.copytree(together, workdir)
    shutil.rmtree(workdir / "checkpoints" / "3")
    assert learnt(run(folder, "in parts", 2)) == learnt(together)


def test_stop_together_where_one_is_asked_to(folder: Path, together: Path) -> None:
    statuses = start(folder, "stopped", 2, IS_STOPPED, "--max_steps=5")
    assert [status.split()[-1] for status in statuses] == ["143", "143"]
    done = len(learnt(folder / "stopped"))
    assert 1 <= done < 5
    assert (folder / "stopped" / "checkpoints" / str(done)).is_dir()
    start(folder, "stopped", 2, SCRIPT, "--max_steps=5")
    found = learnt(folder / "stopped")
    assert len(found) == 5 and found[:3] == learnt(together)


def test_go_on_as_if_nothing_had_happened_where_one_is_killed(folder: Path, together: Path) -> None:
    options = arguments(folder / "killed", folder / "model", folder / "pairs.jsonl", *OPTIONS)
    cache = {"RMR1_JAX_CACHE": str(folder / "programs 2")}
    ended = run_job(options, 2, 4, script=IS_KILLED, environment=cache)
    assert [end.status for end in ended] == [3, -9], ended
    said = ended[0].err.splitlines()[-1]
    assert said.startswith("error: process 1 of 2 (") and " is gone: " in said
    assert learnt(folder / "killed") == learnt(together)[:1]
    assert [end.status for end in run_job(options, 2, 4, environment=cache)] == [0, 0]
    assert learnt(folder / "killed") == learnt(together)
