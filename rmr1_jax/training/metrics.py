"""Where a run's numbers go: JSON lines, TensorBoard, and wandb where it is installed."""

import json
import math
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rmr1_jax.io.atomic_write import atomic_file
from rmr1_jax.io.run_directory import METRICS

Numbers = Mapping[str, float | int | None]


class MetricsLog:
    """Appends one record a step. Only one process of a run may have one.

    Args:
      workdir: the run's.
      after: the step that the run goes on after; records of later steps are an interrupted run's,
        and will be made again.
      config: shown by wandb, which is used where it is installed and WANDB_MODE or WANDB_API_KEY
        says so.
    """

    def __init__(self, workdir: Path, *, after: int, config: Mapping[str, Any]) -> None:
        self.path = workdir / METRICS
        keep_until(self.path, after)
        self._file = self.path.open("a", encoding="utf-8")
        from tensorboardX import SummaryWriter  # here: it takes a while to import

        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=after + 1)
        self._wandb: Any = None
        if find_spec("wandb") and ("WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ):
            import wandb

            self._wandb = wandb.init(
                dir=str(workdir), name=workdir.name, id=_run_id(workdir), resume="allow"
            )
            self._wandb.config.update(dict(config), allow_val_change=True)

    def write(self, step: int, numbers: Numbers) -> None:
        """`numbers` of a step; those that are None or not finite stay out of the charts."""
        record = {"step": step} | {name: _plain(value) for name, value in numbers.items()}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # or a mounted bucket has it when the run ends
        charted = {
            name: float(value)
            for name, value in numbers.items()
            if value is not None and math.isfinite(value)
        }
        for name, value in charted.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(charted, step=step)

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The records of a run, in order; an interrupted last line is left out."""
    path = Path(workdir) / METRICS
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`, and half a line that a kill left."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
    if len(kept) != len(lines):
        with atomic_file(path) as file:
            file.writelines(kept)


def _plain(value: float | int | None) -> float | int | str | None:
    # JSON has no NaN and no infinity; a step that was skipped for one should still say so.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _run_id(workdir: Path) -> str:
    """A name that stays the same when the run goes on."""
    file = workdir / "wandb_id"
    if not file.exists():
        file.write_text(os.urandom(4).hex())
    return file.read_text()
