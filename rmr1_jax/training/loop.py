"""The loop around a training step: batches in, metrics out, saved in time, and able to go on.

It knows neither the model nor the objective.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from rmr1_jax.errors import UserError
from rmr1_jax.training.metrics import MetricsLog
from rmr1_jax.training.run_checkpoints import RunCheckpoints
from rmr1_jax.training.step import Metrics, TrainState
from rmr1_jax.training.stop_signal import StopSignal
from rmr1_jax.training.training_progress import TrainingProgress

Numbers = dict[str, float | int | None]
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


class Data(Protocol):
    """Where a run's data come from; its position can be kept."""

    def get_state(self) -> Mapping[str, Any]: ...


class Abandoned(Exception):
    """Raised where a stop is asked: by a validation, and by a step before it changes its state."""


@dataclass
class Job:
    """What the loop needs to know of a run.

    Args:
      steps: the last step.
      step: the train step, (state, batch) -> (state, metrics); it may `give_up_if_asked`.
      report: (step, metrics on the host, seconds that the step took) -> what to log of it.
      name_batch: the examples of a step, for the message about it.
      fetch: the next batch on the devices, fetched while a step computes. None: the step draws from
        the data itself, as much as it needs, and is given None.
      validate: (step, state) -> what to log of a validation; it may `give_up_if_asked`. None: there
        is no validation.
      rank_by: the number of a validation that is lowest for the best checkpoint.
      updates: of the optimizer, a step.
      validate_every, save_every, log_every: in steps.
      max_nonfinite_steps: so many updates in a row that are not finite end the run.
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
    max_nonfinite_steps: int = 3
    stop_asked: Callable[[], bool] = lambda: False
    """Set by the loop."""

    def give_up_if_asked(self) -> None:
        """Raises `Abandoned` where a stop is asked. All processes call it at the same places."""
        if self.stop_asked():
            raise Abandoned


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
    is fetched; so its position in the data is noted before. A signal saves instead of validating,
    but at the last step, since a run at its end does not go on. Raises UserError where too many
    updates in a row were not finite.
    """
    step = int(state.step) // job.updates
    if step >= job.steps:
        return Outcome(state, step)
    reached, seconds_save = data.get_state(), 0.0

    def fetch() -> tuple[Any, Mapping[str, Any]]:
        return (job.fetch() if job.fetch else None), data.get_state()

    with StopSignal() as stop:
        job.stop_asked = stop.asked
        try:
            if step == 0 and job.validate and job.validate_every:
                found = _validation(job, 0, state)
                if log:
                    log.write(0, found)
                progress.step_done(0, found)
            batch, position = fetch()
            while step < job.steps:
                start = time.perf_counter()
                state, metrics = job.step(state, batch)
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
                at_end = step == job.steps
                last = at_end or stop.stop_after(step)
                if at_end:
                    due = job.validate_every > 0
                    job.stop_asked = lambda: False  # nothing would make up for this validation
                else:
                    due = not last and _due(step, job.validate_every)
                found = {}
                if job.validate and due:
                    try:
                        found = _validation(job, step, state)
                    except Abandoned:
                        last = True
                numbers |= found
                if log and (last or found or _due(step, job.log_every)):
                    log.write(step, numbers)
                progress.step_done(step, numbers)
                # After the record: a run that goes on from here has that of every earlier step.
                seconds_save = 0.0
                if last or _due(step, job.save_every):
                    start = time.perf_counter()
                    checkpoints.save(step, state, reached, score=found.get(job.rank_by))
                    seconds_save = time.perf_counter() - start
                if last:
                    break
        except Abandoned:
            checkpoints.wait()
            if step not in checkpoints.steps():
                checkpoints.save(step, state, reached)
        checkpoints.wait()
        ended_by = stop.signal if step < job.steps else None
        return Outcome(state, step, ended_by)


def _validation(job: Job, step: int, state: TrainState) -> Numbers:
    """What a validation finds, and how long it takes. Raises Abandoned."""
    assert job.validate is not None
    start = time.perf_counter()
    found = job.validate(step, state)
    return found | {"seconds_validation": time.perf_counter() - start}


def _refuse_bad_steps(step: int, metrics: Metrics, job: Job, progress: TrainingProgress) -> None:
    if metrics.finite:
        return
    named = job.name_batch(step)
    progress.say(
        f"step {step}: loss or gradient of an update is not finite, skipped; its batch: {named}"
    )
    if metrics.bad_steps >= job.max_nonfinite_steps:
        raise UserError(
            f"the loss or its gradient was not finite in {int(metrics.bad_steps)} updates in a "
            f"row, the last of them in step {step}, whose batch held {named}. These updates "
            "changed no weights. Look at these examples, lower --optimizer.learning_rate, or allow "
            "more with --max_nonfinite_steps."
        )


def name_some(names: Sequence[str]) -> str:
    """The first few names of a batch's examples, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
