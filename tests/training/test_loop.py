"""The loop around a step: when it validates, logs, saves and stops. The steps are toys."""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax.numpy as jnp
import pytest

from rmr1_jax.config import SftConfig
from rmr1_jax.config.training_config import CheckpointConfig, ValidationConfig
from rmr1_jax.errors import UserError
from rmr1_jax.training.loop import Abandoned, StopSignal, TrainingRun, take_steps
from rmr1_jax.training.metrics import MetricsLog, Numbers, TrainingProgress
from rmr1_jax.training.run_checkpoints import RunCheckpoints
from rmr1_jax.training.step import Metrics, TrainState


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


class Log:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        self.records.append({"step": step, **numbers})


def metrics(*, bad_steps: int = 0) -> Metrics:
    bad = jnp.int32(bad_steps)
    return Metrics(None, jnp.float32(1), bad == 0, bad, bad)


class Toy(TrainingRun):
    """A run whose state only counts its updates, and whose position what was drawn."""

    def __init__(
        self,
        *,
        steps: int = 4,
        taken: int = 0,
        updates: int = 1,
        fetches: bool = False,
        validate: Callable[[int], Numbers] | None = None,
        validate_every: int = 0,
        save_every: int = 100,
        rank_by: str = "validation/loss",
        **options: Any,
    ) -> None:
        self.config = SftConfig(
            validation=ValidationConfig(every=validate_every),
            checkpoint=CheckpointConfig(every=save_every),
            **options,
        )
        self.steps, self.updates, self.fetches, self.rank_by = steps, updates, fetches, rank_by
        self.validates, self.validation = validate is not None, validate
        self.log, self.saved = Log(), Saved(*([taken] if taken else []))
        self.position, self.bad_steps = 0, 0
        self.batches: list[Any] = []
        self.on_step: Callable[[int], None] = lambda step: None
        self.state = cast(TrainState, _State(taken * updates))

    def fetch(self) -> int:
        self.position += 1
        return self.position

    def get_state(self) -> dict[str, Any]:
        return {"position": self.position}

    def take_step(self, state: TrainState, batch: Any = None) -> tuple[TrainState, Metrics]:
        number = int(state.step) // self.updates + 1
        if batch is None:
            self.fetch()
        self.batches.append(batch)
        self.on_step(number)
        new = cast(TrainState, _State(int(state.step) + self.updates))
        return new, metrics(bad_steps=self.bad_steps)

    def validate(self, step: int, state: TrainState) -> Numbers:
        assert self.validation is not None
        return self.validation(step)

    def report(self, step: int, metrics: Metrics, seconds: float) -> Numbers:
        return {"loss": 1.0}

    def batch_ids(self, step: int) -> list[str]:
        return [f"example {step}", *["another"] * 9]

    def go(self) -> tuple[int, int | None]:
        """The last step, and the signal that ended the run."""
        with TrainingProgress(steps=self.steps, done=0, quiet=True) as progress:
            checkpoints, log = cast(RunCheckpoints, self.saved), cast(MetricsLog, self.log)
            return take_steps(self, checkpoints, log, progress)

    def steps_logged(self) -> list[int]:
        return [record["step"] for record in self.log.records]


class _State:
    def __init__(self, step: int) -> None:
        self.step = jnp.int32(step)


class TestData:
    def test_a_batch_is_fetched_ahead_and_saved_behind(self) -> None:
        run = Toy(fetches=True, save_every=1)
        run.go()
        assert run.batches == [1, 2, 3, 4]
        # After step n, n batches are used up, though one more is there already.
        assert [(step, position) for step, position, _ in run.saved.saved] == [
            (1, 1), (2, 2), (3, 3), (4, 4),
        ]  # fmt: skip

    def test_a_step_may_draw_for_itself(self) -> None:
        run = Toy(save_every=2)

        def draw_more(step: int) -> None:
            for _ in range(step):
                run.fetch()

        run.on_step = draw_more
        run.go()
        assert run.batches == [None] * 4
        assert run.saved.saved == [(2, 2 + 3, None), (4, 4 + 10, None)]


class TestNumbers:
    def test_are_logged_when_due_and_at_the_end(self) -> None:
        run = Toy(steps=5, log_every=2)
        run.go()
        assert run.steps_logged() == [2, 4, 5]

    def test_steps_are_counted_by_their_updates(self) -> None:
        run = Toy(updates=8, taken=2)
        assert run.go() == (4, None)
        assert run.steps_logged() == [3, 4]
        assert int(run.state.step) == 32

    def test_a_run_at_its_end_takes_no_step(self) -> None:
        run = Toy(taken=4)
        assert run.go() == (4, None)
        assert not run.batches and not run.saved.saved


class TestValidation:
    @staticmethod
    def validated(**options: Any) -> Toy:
        run = Toy(
            validate=lambda step: {"validation/loss": 10.0 - step, "other": 1.0},
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
        run = Toy()
        run.on_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None
        assert run.go() == (2, signal.SIGTERM)
        assert run.saved.saved == [(2, 2, None)]

    @pytest.mark.parametrize("save_every", [1, 100])
    def test_a_step_that_is_given_up_is_as_if_it_had_not_begun(self, save_every: int) -> None:
        run = Toy(save_every=save_every)

        def give_up(step: int) -> None:
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                assert run.stop_asked()
                raise Abandoned

        run.on_step = give_up
        assert run.go() == (2, signal.SIGTERM)
        assert run.steps_logged() == [1, 2]
        # The third step drew from the data before it was given up.
        assert run.position == 3 and run.saved.saved[-1] == (2, 2, None)

    @staticmethod
    def stopped_as_it_validates(at: int, *, gives_up: bool) -> tuple[Toy, list[int]]:
        """SIGTERM comes during the validation of that step; which steps are validated."""
        finished: list[int] = []

        def validate(step: int) -> Numbers:
            if step == at:
                os.kill(os.getpid(), signal.SIGTERM)
            if gives_up:
                run.give_up_if_asked()
            finished.append(step)
            return {"validation/loss": 1.0}

        run = Toy(validate=validate, validate_every=2, save_every=100)
        return run, finished

    def test_a_signal_before_a_validation_saves_at_once(self) -> None:
        run, finished = self.stopped_as_it_validates(at=-1, gives_up=False)
        run.on_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None
        assert run.go() == (2, signal.SIGTERM)
        assert finished == [0] and run.saved.saved == [(2, 2, None)]
        assert run.steps_logged() == [0, 1, 2]

    @pytest.mark.parametrize(("at", "logged"), [(0, []), (2, [0, 1, 2])])
    def test_a_signal_within_a_validation_gives_it_up(self, at: int, logged: list[int]) -> None:
        run, finished = self.stopped_as_it_validates(at, gives_up=True)
        assert run.go() == (at, signal.SIGTERM)
        assert at not in finished and run.saved.saved == [(at, at, None)]
        assert run.steps_logged() == logged

    def test_the_last_validation_is_finished(self) -> None:
        run, finished = self.stopped_as_it_validates(4, gives_up=True)
        assert run.go() == (4, None)
        assert finished == [0, 2, 4] and run.saved.saved == [(4, 4, 1.0)]

    def test_after_too_many_updates_that_were_not_finite(self) -> None:
        run = Toy(max_nonfinite_steps=3)

        def fail(step: int) -> None:
            run.bad_steps = step

        run.on_step = fail
        with pytest.raises(UserError, match=r"in 3 updates in a row, .* held example 3, .*2 more"):
            run.go()
        assert run.steps_logged() == [1, 2] and not run.saved.saved


def test_a_step_that_fails_leaves_what_was_saved() -> None:
    run = Toy(save_every=1)

    def fail(step: int) -> None:
        if step == 3:
            raise UserError("the reward function fails")

    run.on_step = fail
    with pytest.raises(UserError, match="the reward function fails"):
        run.go()
    assert [step for step, _, _ in run.saved.saved] == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step(number: int) -> None:
    with StopSignal() as stop:
        assert not stop.stop_after(1)
        os.kill(os.getpid(), number)
        assert stop.stop_after(2)
        assert stop.signal == number


def test_a_second_interrupt_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
