"""The loop around a training step: batches in, metrics out, saved in time, and able to go on.

It knows neither the model nor the objective.
"""

import time
from collections.abc import Callable, Mapping, Sequence
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
NAMED = 8  # examples named in a message about a batch


class Data(Protocol):
    """Where a run's data come from; its position can be kept."""

    def get_state(self) -> Mapping[str, Any]: ...


class Abandoned(Exception):
    """Raised by a step that was asked to stop before it changed its state."""


@dataclass
class Job:
    """What the loop needs to know of a run.

    Args:
      steps: the last step.
      step: the train step, (state, batch) -> (state, metrics); it may raise `Abandoned` where it
        asks `stop_asked` on the way.
      report: (step, metrics on the host, seconds that the step took) -> what to log of it.
      name_batch: the examples of a step, for the message about it.
      fetch: the next batch on the devices, fetched while a step computes. None: the step draws from
        the data itself, as much as it needs, and is given None.
      validate: (step, state) -> what to log of a validation. None: there is no validation.
      rank_by: the number of a validation that is lowest for the best checkpoint.
      updates: of the optimizer, a step.
      validate_every, save_every, log_every: in steps.
      max_bad_steps: so many updates in a row that are not finite end the run.
    """

    steps: int
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    report: Callable[[int, Metrics, float], Numbers]
    name_batch: Callable[[int], str]
    fetch: Callable[[], Any] | None = None
    validate: Callable[[int, TrainState], Numbers] | None = None
    rank_by: str = "validation/loss"
    updates: int = 1
    validate_every: int = 0
    save_every: int = 100
    log_every: int = 1
    max_bad_steps: int = 3
    stop_asked: Callable[[], bool] = lambda: False
    """Set by the loop."""


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
    data: Data,
    checkpoints: RunCheckpoints,
    log: MetricsLog | None,
    progress: TrainingProgress,
) -> Outcome:
    """Take steps until `job.steps`, or until a signal; the last state is saved either way.

    Before the first step of a run it is validated as it is. While a step computes, the next batch
    is fetched; so its position in the data is noted before. Raises UserError where too many updates
    in a row were not finite.
    """
    step = int(state.step) // job.updates
    if step >= job.steps:
        return Outcome(state, step)
    reached, seconds_save = data.get_state(), 0.0

    def fetch() -> tuple[Any, Mapping[str, Any]]:
        return (job.fetch() if job.fetch else None), data.get_state()

    with StopSignal() as stop:
        job.stop_asked = stop.asked
        if step == 0 and job.validate and job.validate_every:
            _validated(job, 0, state, {}, log, progress)
        batch, position = fetch()
        while step < job.steps:
            start = time.perf_counter()
            try:
                state, metrics = job.step(state, batch)
            except Abandoned:
                checkpoints.wait()
                if step not in checkpoints.steps():
                    checkpoints.save(step, state, reached)
                break
            step += 1
            reached = position if job.fetch else data.get_state()
            wait = time.perf_counter()
            if step < job.steps:
                batch, position = fetch()
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
            score = None
            at_end = step == job.steps and job.validate_every
            if job.validate and (at_end or _due(step, job.validate_every)):
                score = _validated(job, step, state, numbers, log, progress)
            else:
                if log and (last or _due(step, job.log_every)):
                    log.write(step, numbers)
                progress.step_done(step, numbers)
            # After the record: a run that goes on from here has the record of every earlier step.
            seconds_save = 0.0
            if last or _due(step, job.save_every):
                start = time.perf_counter()
                checkpoints.save(step, state, reached, score=score)
                seconds_save = time.perf_counter() - start
            if last:
                break
        checkpoints.wait()
        ended_by = stop.signal if step < job.steps else None
        return Outcome(state, step, ended_by)


def _validated(
    job: Job,
    step: int,
    state: TrainState,
    numbers: Numbers,
    log: MetricsLog | None,
    progress: TrainingProgress,
) -> float | None:
    """Validate, log that with the numbers of the step, and return what ranks its checkpoint."""
    assert job.validate is not None
    start = time.perf_counter()
    validation = job.validate(step, state)
    numbers = numbers | validation | {"seconds_validation": time.perf_counter() - start}
    if log:
        log.write(step, numbers)
    progress.step_done(step, numbers)
    return validation.get(job.rank_by)


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


def name_some(names: Sequence[str]) -> str:
    """The first few names of a batch's examples, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
