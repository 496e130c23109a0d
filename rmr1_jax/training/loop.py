"""The loop around a training step: batches in, metrics out, saved in time, and able to go on.

It knows neither the model nor the objective.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from rmr1_jax.errors import UserError
from rmr1_jax.training.checkpoint import RunCheckpoints
from rmr1_jax.training.metrics import MetricsLog
from rmr1_jax.training.progress import TrainingProgress
from rmr1_jax.training.signals import StopSignal
from rmr1_jax.training.step import Metrics, TrainState

Numbers = dict[str, float | int | None]


class Batches(Protocol):
    """An endless enough iterator whose position can be kept."""

    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...
    def get_state(self) -> Mapping[str, Any]: ...


@dataclass
class Job:
    """What the loop needs to know of a run.

    Args:
      steps: the last step.
      step: the jitted train step, (state, batch on the devices) -> (state, metrics).
      put: a batch of this process -> arrays on the devices.
      report: (step, metrics on the host, seconds that the step took) -> what to log of it.
      validate: (step, state) -> what to log of a validation; "validation/loss" also ranks
        checkpoints. None: there is no validation.
      validate_every, save_every, log_every: in steps.
      max_bad_steps: so many steps in a row that are not finite end the run.
      name_batch: the examples of a step, for the message about it.
    """

    steps: int
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    put: Callable[[Any], Any]
    report: Callable[[int, Metrics, float], Numbers]
    name_batch: Callable[[int], str]
    validate: Callable[[int, TrainState], Numbers] | None = None
    validate_every: int = 0
    save_every: int = 100
    log_every: int = 1
    max_bad_steps: int = 3


@dataclass
class Outcome:
    """How a run ended."""

    state: TrainState
    step: int
    stopped_by: int | None = None
    """The signal that ended it early."""


def train(
    job: Job,
    state: TrainState,
    batches: Batches,
    checkpoints: RunCheckpoints,
    log: MetricsLog | None,
    progress: TrainingProgress,
) -> Outcome:
    """Take steps until `job.steps`, or until a signal; the last state is saved either way.

    While a step computes, the next batch is fetched; so its position in the data is noted before.
    Raises UserError where too many steps in a row were not finite.
    """
    step = int(state.step)
    seconds_save = 0.0
    if step >= job.steps:
        return Outcome(state, step)
    with StopSignal() as stop:
        batch, position = job.put(next(batches)), batches.get_state()
        while step < job.steps:
            start = time.perf_counter()
            state, metrics = job.step(state, batch)
            step += 1
            reached = position
            wait = time.perf_counter()
            if step < job.steps:
                batch, position = job.put(next(batches)), batches.get_state()
            seconds_data = time.perf_counter() - wait
            metrics = jax.device_get(metrics)
            seconds = time.perf_counter() - start
            _refuse_bad_steps(step, metrics, job, progress)

            numbers = job.report(step, metrics, seconds)
            numbers |= {
                "seconds": seconds,
                "seconds_data": seconds_data,
                "seconds_save": seconds_save,
                "skipped": int(metrics.skipped),
            }
            last = step == job.steps or stop.stop_after(step)
            loss, validated = None, False
            at_end = step == job.steps and job.validate_every
            if job.validate and (at_end or _due(step, job.validate_every)):
                validation = job.validate(step, state)
                numbers |= validation
                loss, validated = validation.get("validation/loss"), True
            if log and (last or validated or _due(step, job.log_every)):
                log.write(step, numbers)
            progress.step_done(step, numbers)
            # After the record: a run that goes on from here has the record of every earlier step.
            seconds_save = 0.0
            if last or _due(step, job.save_every):
                start = time.perf_counter()
                checkpoints.save(step, state, reached, validation_loss=loss)
                seconds_save = time.perf_counter() - start
            if last:
                break
        checkpoints.wait()
        ended_by = stop.signal if step < job.steps else None
        return Outcome(state, step, ended_by)


def _refuse_bad_steps(step: int, metrics: Metrics, job: Job, progress: TrainingProgress) -> None:
    if metrics.finite:
        return
    named = job.name_batch(step)
    progress.say(f"step {step}: loss or gradient is not finite, skipped; its batch: {named}")
    if metrics.bad_steps >= job.max_bad_steps:
        raise UserError(
            f"the loss or its gradient was not finite in {int(metrics.bad_steps)} steps in a row, "
            f"the last of them step {step}, whose batch held {named}. The weights are those before "
            "these steps. Look at these examples, lower --optimizer.learning_rate, or allow more "
            "with --max_bad_steps."
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
