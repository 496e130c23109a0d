"""`--stage=sft` in two and four processes: one of them is killed, or asked to stop."""

import json
import shutil
from pathlib import Path
from signal import SIGKILL, SIGTERM

import numpy as np
import pytest

from rmr1_jax.toy_task import TOY_PROMPT, toy_preferences
from rmr1_jax.toy_task.scripted_teacher import ScriptedTeacher
from rmr1_jax.training.metrics import read_metrics
from tests.processes import LOST_ANOTHER, MAIN, Ended, meets_signal, run_job
from tests.stages.tiny_grpo import write_model

pytestmark = pytest.mark.slow

DEVICES = 4
VALIDATED = "--validation.every=4"
Learnt = tuple[int, float, float]
# Process {index} meets signal {number} when it begins to take step {step}.
SIGNALLED = """
import os, sys
import jax
from rmr1_jax.main import main
from rmr1_jax.training.sft_trainer import Sft

take_step = Sft.take_step

def take_or_fall(sft, state, batch):
    if int(state.step) + 1 == {step} and jax.process_index() == {index}:
        os.kill(os.getpid(), {number:d})
    return take_step(sft, state, batch)

Sft.take_step = take_or_fall
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, teacher = tmp_path_factory.mktemp("sft processes"), ScriptedTeacher(1.0)
    with (folder / "traces.jsonl").open("w") as file:
        for pair in toy_preferences(80, 0):
            record = {
                "id": pair.id,
                "context_messages": TOY_PROMPT.messages(pair),
                "winner": teacher.write(pair),
            }
            file.write(json.dumps(record) + "\n")
    write_model(folder / "model")
    return folder


def start(
    folder: Path, workdir: str, processes: int, *more: str, script: str = MAIN
) -> list[Ended]:
    options = [
        "--stage=sft",
        f"--model={folder / 'model'}",
        f"--data.train={folder / 'traces.jsonl'}",
        f"--workdir={folder / workdir}",
        "--data.max_length=128",
        "--data.pack_length=128",
        "--data.held_out=9",  # two batches, the second with rows of one process only
        "--batch_size=8",
        "--remat=none",
        "--validation.every=0",
        "--checkpoint.every=1",
        "--max_steps=4",
        *more,
    ]
    if not any(option.startswith("--mesh") for option in more):
        options.append("--mesh=data=2,fsdp=2")
    return run_job(options, processes, DEVICES // processes, script=script)


def succeed(folder: Path, workdir: str, processes: int, *more: str) -> Path:
    ended = start(folder, workdir, processes, *more)
    assert [end.status for end in ended] == [0] * processes, ended
    return folder / workdir


def learnt(workdir: Path) -> list[Learnt]:
    records = [record for record in read_metrics(workdir) if record["step"]]
    return [(r["step"], r["loss"], r["gradient_norm"]) for r in records]


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    return succeed(folder, "alone", 1, VALIDATED)


@pytest.fixture(scope="module")
def together(folder: Path) -> Path:
    return succeed(folder, "together", 2, VALIDATED)


def held_out_losses(workdir: Path) -> list[float]:
    records = read_metrics(workdir)
    return [r["validation/loss"] for r in records if "validation/loss" in r]


def is_near(found: list[Learnt], expected: list[Learnt]) -> bool:
    return len(found) == 4 and np.allclose(found, expected, rtol=1e-4)


def test_learn_what_one_process_learns_and_write_the_same_files(
    alone: Path, together: Path
) -> None:
    assert is_near(learnt(together), learnt(alone))
    assert {p.name for p in together.iterdir()} == {p.name for p in alone.iterdir()}


def test_measure_the_validation_loss_of_all_rows(alone: Path, together: Path) -> None:
    found, expected = held_out_losses(together), held_out_losses(alone)
    assert len(found) == 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_resume_exactly_after_one_is_killed_and_one_is_asked_to_stop(
    folder: Path, together: Path
) -> None:
    ended = start(folder, "resumed", 2, script=SIGNALLED.format(step=2, index=0, number=SIGKILL))
    assert ended[0].status == -SIGKILL and ended[1].status in LOST_ANOTHER, ended

    script = SIGNALLED.format(step=3, index=1, number=SIGTERM)
    ended = start(folder, "resumed", 2, "--checkpoint.every=100", script=script)
    assert [end.status for end in ended] == [143, 143], ended
    assert "stopped by signal 15 after step 3 of 4, saved" in ended[0].err
    assert (folder / "resumed" / "checkpoints" / "3").is_dir()
    assert learnt(succeed(folder, "resumed", 2)) == learnt(together)


@pytest.mark.nightly
def test_four_learn_the_same_though_one_is_killed_and_one_is_asked_to_stop(
    folder: Path, alone: Path
) -> None:
    ended = start(folder, "four", 4, script=SIGNALLED.format(step=3, index=2, number=SIGKILL))
    assert ended[2].status == -SIGKILL, ended
    assert all(ended[other].status in LOST_ANOTHER for other in (0, 1, 3)), ended

    script = SIGNALLED.format(step=3, index=1, number=SIGTERM)
    ended = start(folder, "four", 4, "--checkpoint.every=100", script=script)
    assert [end.status for end in ended] == [143] * 4, ended
    assert "stopped by signal 15 after step 3 of 4, saved" in ended[0].err
    assert (folder / "four" / "checkpoints" / "3").is_dir()
    assert is_near(learnt(succeed(folder, "four", 4)), learnt(alone))


@pytest.mark.nightly
def test_share_rows_where_the_tensor_axis_spans_them(folder: Path) -> None:
    """Both processes of a row's devices must have the same row."""
    options = ("--mesh=fsdp=2,tensor=2", "--lora.rank=2")
    across, within = succeed(folder, "across", 4, *options), succeed(folder, "within", 1, *options)
    assert is_near(learnt(across), learnt(within))


@pytest.mark.nightly
def test_all_save_the_same_step_where_one_is_asked_to_stop(folder: Path, together: Path) -> None:
    """Whether it validates, or would after that step."""
    options = ("--checkpoint.every=100", "--validation.every=2")
    within = meets_signal(SIGTERM, 1, call=1, of="rmr1_jax.training.sft_trainer:Sft.validate")
    before = SIGNALLED.format(step=2, index=1, number=SIGTERM)
    for step, script in ((0, within), (2, before)):
        ended = start(folder, "asked", 2, *options, script=script)
        assert [end.status for end in ended] == [143, 143], ended
        assert f"stopped by signal 15 after step {step} of 4, saved" in ended[0].err
        assert (folder / "asked" / "checkpoints" / str(step)).is_dir()
    assert len(held_out_losses(folder / "asked")) == 1
    assert learnt(succeed(folder, "asked", 2, *options)) == learnt(together)


@pytest.mark.nightly
def test_a_damaged_checkpoint_is_set_aside_once(folder: Path, together: Path) -> None:
    shutil.copytree(together, folder / "damaged")
    for file in (folder / "damaged" / "checkpoints" / "4" / "weights").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    succeed(folder, "damaged", 2)
    assert (folder / "damaged" / "checkpoints" / "4.damaged").is_dir()
    assert learnt(folder / "damaged") == learnt(together)
