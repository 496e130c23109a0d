"""The loop around a training step: batches in, metrics out, saved in time, and able to resume.

It knows neither the model nor the objective; `TrainingRun` is what it asks of a stage
(`sft_trainer.Sft`, `rl.trainer.Grpo`).
"""

import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from rmr1_jax.config import GrpoConfig, SftConfig
from rmr1_jax.distributed.hosts import log_primary
from rmr1_jax.errors import UserError
from rmr1_jax.models.checkpoint import CHECKPOINTS
from rmr1_jax.training.curves import draw_curves
from rmr1_jax.training.metrics import MetricsLog, Numbers, TrainingProgress
from rmr1_jax.training.run_checkpoints import RunCheckpoints
from rmr1_jax.training.step import Metrics, TrainState

# Options that do not change what is learnt; a run may be resumed with others.
MAY_CHANGE = (
    "workdir",
    "mesh",
    "micro_batch_size",
    "remat",
    "sequence_parallel",
    "max_nonfinite_steps",
    "log_every",
    "checkpoint",
    "validation",
)
NAMED = 8  # examples named in a message about a batch


class Abandoned(Exception):
    """Raised where a stop is asked: by a validation, and by a step before it changes its state."""


class TrainingRun:
    """A run of a training stage: what it learns from, its state, and its step.

    Attributes:
      config: checked.
      steps: the last step.
      updates: of the optimizer, a step.
      fetches: `fetch` gives the next batch, while a step computes; else a step draws its own data.
      validates: there is something to validate on.
      rank_by: the number of a validation that is lowest for the best checkpoint.
      state: None while the loop has it, which donates it to each step.
      like: shapes, types and shardings of the state.
      progress: shows what a step is doing; None outside of the loop.
      stop_asked: whether a signal has come; set by the loop.
    """

    config: SftConfig | GrpoConfig
    steps: int
    updates = 1
    fetches = False
    validates = False
    rank_by = "validation/loss"
    state: TrainState
    like: TrainState
    progress: TrainingProgress | None = None
    stop_asked: Callable[[], bool] = staticmethod(lambda: False)

    def fetch(self) -> Any:
        """The next batch, on the devices."""

    def take_step(self, state: TrainState, batch: Any = None) -> tuple[TrainState, Metrics]:
        """The next state and what it tells. Donates `state`; may `give_up_if_asked` before."""
        raise NotImplementedError

    def validate(self, step: int, state: TrainState) -> Numbers:
        """What to log of a validation; it may `give_up_if_asked`."""
        raise NotImplementedError

    def report(self, step: int, metrics: Metrics, seconds: float) -> Numbers:
        """What to log of a step, from its metrics (on the host) and the seconds that it took."""
        raise NotImplementedError

    def batch_ids(self, step: int) -> Sequence[str]:
        """The examples of a step that was just taken."""
        raise NotImplementedError

    def get_state(self) -> Mapping[str, Any]:
        """The position in the data; plain JSON."""
        raise NotImplementedError

    def set_state(self, position: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def start(self, *, writes: bool) -> None:
        """Called before the first step; one process of a run writes."""

    def close(self) -> None:
        """Called after the last step."""

    def resume(self, checkpoints: RunCheckpoints) -> int:
        """Take up the latest checkpoint, if there is one. Returns the steps that were taken."""
        restored = checkpoints.restore(self.like)
        if restored is not None:
            self.state, position = restored
            self.set_state(position)
        return int(self.state.step) // self.updates

    def give_up_if_asked(self) -> None:
        """Raises `Abandoned` where a stop is asked. All processes call it at the same places."""
        if self.stop_asked():
            raise Abandoned

    def phase(self, text: str) -> None:
        """Show what the step is doing."""
        if self.progress is not None:
            self.progress.phase(text)


def train(run: TrainingRun, *, resumes: bool) -> int:
    """Train from the latest checkpoint, or the start, to the end; say where everything is.

    Returns the exit status: 0, or 128 + the number of the signal that ended it early.
    """
    config, workdir = run.config, Path(run.config.workdir)
    writes = jax.process_index() == 0
    checkpoints = RunCheckpoints(workdir, keep=config.checkpoint.keep, warn=log_primary)
    try:
        done = run.resume(checkpoints)
        if resumes:
            log_primary(f"going on after step {done} of {run.steps}")
        log = None
        if writes:
            settings = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
            log = MetricsLog(workdir, after=done or -1, config=settings)
        try:
            run.start(writes=writes)
            with TrainingProgress(steps=run.steps, done=done, quiet=not writes) as progress:
                step, stopped_by = take_steps(run, checkpoints, log, progress)
        finally:
            run.close()
            if log:
                log.close()
        if stopped_by is not None:
            log_primary(
                f"stopped by signal {stopped_by} after step {step} of {run.steps}, saved; "
                "the same command goes on"
            )
        elif writes:
            _report_result(workdir, run.steps, checkpoints.best())
    finally:
        checkpoints.close()
    return 0 if stopped_by is None else 128 + stopped_by


def _report_result(workdir: Path, steps: int, best: int | None) -> None:
    try:
        if picture := draw_curves(workdir):
            log_primary(f"curves: {picture}")
    except Exception as error:  # reporting never ends a run
        log_primary(f"warning: no curves were drawn ({type(error).__name__}: {error})")
    if best not in (None, steps):
        log_primary(f"the best validation was at step {best}: {workdir}/{CHECKPOINTS}/{best}")
    log_primary(
        f"done: {steps} steps, in {workdir}. Judge with it, or export it:\n"
        f"  python -m rmr1_jax.main --stage=judge --model={workdir} --input=PAIRS.jsonl "
        "--output=VERDICTS.jsonl\n"
        f"  python -m rmr1_jax.main --stage=convert --input={workdir} --output=HF_DIR "
        "--to=huggingface"
    )


def take_steps(
    run: TrainingRun,
    checkpoints: RunCheckpoints,
    log: MetricsLog | None,
    progress: TrainingProgress,
) -> tuple[int, int | None]:
    """Take steps until `run.steps`, or until a signal; the last state is saved either way.

    Before the first step of a run it is validated as it is. While a step computes, the next batch
    is fetched; so its position in the data is noted before. A signal saves instead of validating,
    except at the last step, since a run at its end is not resumed.

    Returns the last step, and the signal that ended the run early. Raises UserError where too many
    updates in a row were not finite.
    """
    config, step = run.config, int(run.state.step) // run.updates
    if step >= run.steps:
        return step, None
    run.progress = progress
    state, run.state = run.state, cast(TrainState, None)  # it will be donated
    reached, seconds_save = run.get_state(), 0.0
    validate_every = config.validation.every if run.validates else 0

    def fetch() -> tuple[Any, Mapping[str, Any]]:
        return (run.fetch() if run.fetches else None), run.get_state()

    with StopSignal() as stop:
        run.stop_asked = stop.asked
        try:
            if step == 0 and validate_every:
                found = _validation(run, 0, state)
                if log:
                    log.write(0, found)
                progress.step_done(0, found)
            batch, position = fetch()
            while step < run.steps:
                start = time.perf_counter()
                state, metrics = run.take_step(state, batch)
                step += 1
                reached = position if run.fetches else run.get_state()
                wait = time.perf_counter()
                if step < run.steps:
                    batch, position = fetch()
                seconds_data = time.perf_counter() - wait
                metrics = jax.device_get(metrics)
                seconds = time.perf_counter() - start
                _refuse_bad_steps(run, step, metrics, progress)

                numbers = run.report(step, metrics, seconds)
                numbers |= {
                    "seconds": seconds,
                    "seconds_data": seconds_data,
                    "seconds_save": seconds_save,
                    "skipped": int(metrics.skipped),
                }
                at_end = step == run.steps
                last = at_end or stop.stop_after(step)
                if at_end:
                    due = validate_every > 0
                    run.stop_asked = lambda: False  # nothing would make up for this validation
                else:
                    due = not last and _due(step, validate_every)
                found = {}
                if due:
                    try:
                        found = _validation(run, step, state)
                    except Abandoned:
                        last = True
                numbers |= found
                if log and (last or found or _due(step, config.log_every)):
                    log.write(step, numbers)
                progress.step_done(step, numbers)
                # After the record: a run that is resumed here has that of every earlier step.
                seconds_save = 0.0
                if last or _due(step, config.checkpoint.every):
                    start = time.perf_counter()
                    checkpoints.save(step, state, reached, score=found.get(run.rank_by))
                    seconds_save = time.perf_counter() - start
                if last:
                    break
        except Abandoned:
            checkpoints.wait()
            if step not in checkpoints.steps():
                checkpoints.save(step, state, reached)
        checkpoints.wait()
        run.state = state
        return step, stop.signal if step < run.steps else None


def _validation(run: TrainingRun, step: int, state: TrainState) -> Numbers:
    """What a validation finds, and how long it takes. Raises Abandoned."""
    start = time.perf_counter()
    found = run.validate(step, state)
    return found | {"seconds_validation": time.perf_counter() - start}


def _refuse_bad_steps(
    run: TrainingRun, step: int, metrics: Metrics, progress: TrainingProgress
) -> None:
    if metrics.finite:
        return
    ids = run.batch_ids(step)
    named = ", ".join(ids[:NAMED]) + f" and {len(ids) - NAMED} more" * (len(ids) > NAMED)
    progress.say(
        f"step {step}: loss or gradient of an update is not finite, skipped; its batch: {named}"
    )
    if metrics.bad_steps >= run.config.max_nonfinite_steps:
        raise UserError(
            f"the loss or its gradient was not finite in {int(metrics.bad_steps)} updates in a "
            f"row, the last of them in step {step}, whose batch held {named}. These updates "
            "changed no weights. Look at these examples, lower --optimizer.learning_rate, or allow "
            "more with --max_nonfinite_steps."
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class StopSignal:
    """Notes the first signal, so that the loop can save; a second Ctrl-C interrupts at once.

    `signal` is the number of the one that came, or None.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def asked(self) -> bool:
        """Whether a step is to be given up half-way.

        All processes must ask at the same places; they get the same answer.
        """
        return self._agreed(self.signal)

    def stop_after(self, step: int) -> bool:
        """Whether this is the step to stop at; with several processes, the same one for all.

        Each tells the others of its signal, or of the notice that its machine will be taken away.
        """
        noticed = None
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            noticed = signal.SIGTERM
        return self._agreed(self.signal or noticed)

    def _agreed(self, number: int | None) -> bool:
        if jax.process_count() == 1:
            return number is not None
        told = multihost_utils.process_allgather(np.int32(number or 0))
        if not told.any():
            return False  # whatever has come since: the others have not heard of it
        self.signal = int(told.max())  # the same in all, since it becomes their exit status
        return True
