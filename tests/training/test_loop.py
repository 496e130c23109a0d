"""The loop around a step: when it validates, logs, saves and stops. The steps are toys."""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax.numpy as jnp
import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.training.loop import Abandoned, Job, Outcome, train
from rmr1_jax.training.metrics import MetricsLog
from rmr1_jax.training.run_checkpoints import RunCheckpoints
from rmr1_jax.training.step import Metrics, TrainState
from rmr1_jax.training.training_progress import TrainingProgress


class Saved:
    """Checkpoints that are only noted: (step, position in the data, score)."""

    def __init__(self, *steps: int) -> None:
        self.saved: list[tuple[int, Any, float | None]] = []
        self.there = list(steps)

    def save(
        self, step: int, state: Any, data: Mapping[str, Any], *, score: float | None = None
    ) -> None:
        assert step not in self.there, "Orbax refuses a step that is there"
        self.there.append(step)
        self.saved.append((step, data["position"], score))

    def steps(self) -> list[int]:
        return self.there

    def wait(self) -> None:
        pass


class Counter:
    """Data whose position is the number of what was drawn."""

    def __init__(self) -> None:
        self.position = 0

    def draw(self) -> int:
        self.position += 1
        return self.position

    def get_state(self) -> dict[str, Any]:
        return {"position": self.position}


class Log:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        self.records.append({"step": step, **numbers})


def metrics(*, finite: bool = True, bad_steps: int = 0) -> Metrics:
    bad = jnp.int32(bad_steps)
    return Metrics(None, jnp.float32(1), jnp.bool_(finite), bad, bad)


class Run:
    """Runs a job whose state only counts its updates."""

    def __init__(self, *, fetches: bool = False, taken: int = 0, **options: Any) -> None:
        self.data, self.log, self.saved = Counter(), Log(), Saved(*([taken] if taken else []))
        self.batches: list[Any] = []
        self.on_step: Callable[[int], None] = lambda step: None
        updates = options.get("updates", 1)
        given: dict[str, Any] = {
            "steps": 4,
            "step": self.step,
            "report": lambda step, metrics, seconds: {"loss": 1.0},
            "name_batch": lambda step: f"the batch of {step}",
            "fetch": self.data.draw if fetches else None,
        }
        self.job = Job(**given | options)
        self.state = cast(TrainState, _State(taken * updates))

    def step(self, state: Any, batch: Any) -> tuple[TrainState, Metrics]:
        number = int(state.step) // self.job.updates + 1
        if batch is None:
            self.data.draw()
        self.batches.append(batch)
        self.on_step(number)
        return cast(TrainState, _State(int(state.step) + self.job.updates)), metrics()

    def go(self) -> Outcome:
        with TrainingProgress(steps=self.job.steps, done=0, quiet=True) as progress:
            return train(
                self.job,
                self.state,
                self.data,
                cast(RunCheckpoints, self.saved),
                cast(MetricsLog, self.log),
                progress,
            )

    def steps_logged(self) -> list[int]:
        return [record["step"] for record in self.log.records]


class _State:
    def __init__(self, step: int) -> None:
        self.step = jnp.int32(step)


class TestData:
    def test_a_batch_is_fetched_ahead_and_saved_behind(self) -> None:
        run = Run(fetches=True, save_every=1)
        run.go()
        assert run.batches == [1, 2, 3, 4]
        # After step n, n batches are used up, though one more is there already.
        assert [(step, position) for step, position, _ in run.saved.saved] == [
            (1, 1), (2, 2), (3, 3), (4, 4),
        ]  # fmt: skip

    def test_a_step_may_draw_for_itself(self) -> None:
        run = Run(save_every=2)

        def draw_more(step: int) -> None:
            for _ in range(step):
                run.data.draw()

        run.on_step = draw_more
        run.go()
        assert run.batches == [None] * 4
        assert run.saved.saved == [(2, 2 + 3, None), (4, 4 + 10, None)]


class TestNumbers:
    def test_are_logged_when_due_and_at_the_end(self) -> None:
        run = Run(steps=5, log_every=2)
        run.go()
        assert run.steps_logged() == [2, 4, 5]

    def test_steps_are_counted_by_their_updates(self) -> None:
        run = Run(updates=8, taken=2)
        outcome = run.go()
        assert run.steps_logged() == [3, 4]
        assert (outcome.step, int(outcome.state.step)) == (4, 32)

    def test_a_run_at_its_end_takes_no_step(self) -> None:
        run = Run(taken=4)
        assert run.go().step == 4
        assert not run.batches and not run.saved.saved


class TestValidation:
    @staticmethod
    def validated(**options: Any) -> Run:
        run = Run(
            validate=lambda step, state: {"validation/loss": 10.0 - step, "other": 1.0},
            validate_every=3,
            save_every=2,
            **options,
        )
        run.go()
        return run

    def test_comes_before_the_first_step_when_due_and_at_the_end(self) -> None:
        run = self.validated()
        found = {
            record["step"]: record["validation/loss"]
            for record in run.log.records
            if "validation/loss" in record
        }
        assert found == {0: 10.0, 3: 7.0, 4: 6.0}

    def test_before_the_first_step_is_not_repeated_by_a_run_that_goes_on(self) -> None:
        assert self.validated(taken=1).steps_logged() == [2, 3, 4]

    def test_ranks_the_checkpoints_by_the_number_that_is_asked_for(self) -> None:
        assert self.validated().saved.saved == [(2, 2, None), (4, 4, 6.0)]
        assert self.validated(rank_by="other").saved.saved[-1] == (4, 4, 1.0)


class TestStopping:
    def test_a_signal_lets_the_step_end(self) -> None:
        run = Run()
        run.on_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None
        outcome = run.go()
        assert (outcome.step, outcome.stopped_by) == (2, signal.SIGTERM)
        assert run.saved.saved == [(2, 2, None)]

    @pytest.mark.parametrize("save_every", [1, 100])
    def test_a_step_that_is_given_up_is_as_if_it_had_not_begun(self, save_every: int) -> None:
        run = Run(save_every=save_every)

        def give_up(step: int) -> None:
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                assert run.job.stop_asked()
                raise Abandoned

        run.on_step = give_up
        outcome = run.go()
        assert (outcome.step, outcome.stopped_by) == (2, signal.SIGTERM)
        assert run.steps_logged() == [1, 2]
        # The third step drew from the data before it was given up.
        assert run.data.position == 3 and run.saved.saved[-1] == (2, 2, None)

    @staticmethod
    def stopped_as_it_validates(at: int, *, gives_up: bool) -> tuple[Run, list[int]]:
        """SIGTERM comes during the validation of that step; which steps are validated."""
        finished: list[int] = []

        def validate(step: int, state: TrainState) -> dict[str, Any]:
            if step == at:
                os.kill(os.getpid(), signal.SIGTERM)
            if gives_up:
                run.job.give_up_if_asked()
            finished.append(step)
            return {"validation/loss": 1.0}

        run = Run(validate=validate, validate_every=2, save_every=100)
        return run, finished

    def test_a_signal_before_a_validation_saves_at_once(self) -> None:
        run, finished = self.stopped_as_it_validates(at=-1, gives_up=False)
        run.on_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None
        outcome = run.go()
        assert (outcome.step, outcome.stopped_by) == (2, signal.SIGTERM)
        assert finished == [0] and run.saved.saved == [(2, 2, None)]
        assert run.steps_logged() == [0, 1, 2]

    @pytest.mark.parametrize(("at", "logged"), [(0, []), (2, [0, 1, 2])])
    def test_a_signal_within_a_validation_gives_it_up(self, at: int, logged: list[int]) -> None:
        run, finished = self.stopped_as_it_validates(at, gives_up=True)
        outcome = run.go()
        assert (outcome.step, outcome.stopped_by) == (at, signal.SIGTERM)
        assert at not in finished and run.saved.saved == [(at, at, None)]
        assert run.steps_logged() == logged

    def test_the_last_validation_is_finished(self) -> None:
        run, finished = self.stopped_as_it_validates(4, gives_up=True)
        outcome = run.go()
        assert (outcome.step, outcome.stopped_by) == (4, None)
        assert finished == [0, 2, 4] and run.saved.saved == [(4, 4, 1.0)]

    def test_after_too_many_updates_that_were_not_finite(self) -> None:
        bad = iter(range(1, 9))

        def step(state: Any, batch: Any) -> tuple[Any, Metrics]:
            return _State(int(state.step) + 1), metrics(finite=False, bad_steps=next(bad))

        run = Run(step=step, max_nonfinite_steps=3)
        with pytest.raises(UserError, match=r"in 3 updates in a row, .* held the batch of 3"):
            run.go()
        assert run.steps_logged() == [1, 2] and not run.saved.saved


def test_a_step_that_fails_leaves_what_was_saved() -> None:
    run = Run(save_every=1)

    def fail(step: int) -> None:
        if step == 3:
            raise UserError("the reward function fails")

    run.on_step = fail
    with pytest.raises(UserError, match="the reward function fails"):
        run.go()
    assert [step for step, _, _ in run.saved.saved] == [1, 2]
