"""A run's numbers on disk."""

import json
import math
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from rmr1_jax.io.run_directory import METRICS
from rmr1_jax.training.metrics import MetricsLog, read_metrics


@pytest.fixture(autouse=True)
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def write(workdir: Path, after: int, *steps: int) -> None:
    log = MetricsLog(workdir, after=after, config={})
    for step in steps:
        log.write(step, {"loss": step / 2, "mfu": None})
    log.close()


def test_a_record_a_step_is_there_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, after=0, config={})
    log.write(1, {"loss": 0.5})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    log.close()


def test_a_run_that_goes_on_makes_later_records_again(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2, 3)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    write(tmp_path, 2, 3)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]


def test_what_is_not_finite_is_written_as_json_and_not_charted(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, after=0, config={})
    log.write(1, {"loss": math.nan, "gradient_norm": math.inf})
    log.close()
    line = (tmp_path / METRICS).read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1,
        "loss": "nan",
        "gradient_norm": "inf",
    }


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2)
    [file] = (tmp_path / "tensorboard").iterdir()
    data, charted = file.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        charted += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    assert charted == [(1, "loss", 0.5), (2, "loss", 1.0)]
