"""What a run saves: the last few, the best, and nothing that cannot be read again."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmr1_jax.config import OptimizerConfig
from rmr1_jax.errors import UserError
from rmr1_jax.training.run_checkpoints import RunCheckpoints
from rmr1_jax.training.step import TrainState, initial_state, make_optimizer

Open = Callable[..., RunCheckpoints]


def state(step: int, width: int = 3) -> TrainState:
    params = {"layers": {"kernel": jnp.full((2, width), float(step))}}
    fresh = initial_state(params, make_optimizer(OptimizerConfig(), 10))
    return fresh._replace(step=jnp.asarray(step, jnp.int32))


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Open]:
    """A function that opens the checkpoints of one run; `said` collects the warnings."""
    opened: list[RunCheckpoints] = []

    def open_them(said: list[str] | None = None, keep: int = 2) -> RunCheckpoints:
        warnings: list[str] = [] if said is None else said
        opened.append(RunCheckpoints(tmp_path, keep=keep, warn=warnings.append))
        return opened[-1]

    yield open_them
    for each in opened:
        each.close()


def save(checkpoints: RunCheckpoints, step: int, loss: float | None = None) -> None:
    checkpoints.save(step, state(step), {"step": step}, score=loss)
    checkpoints.wait()


def test_everything_comes_back(checkpoints: Open) -> None:
    save(checkpoints(), 3)
    restored = checkpoints().restore(state(0))
    assert restored is not None
    for a, b in zip(jax.tree.leaves(restored[0]), jax.tree.leaves(state(3)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert restored[1] == {"step": 3}


def test_there_may_be_none_yet(checkpoints: Open) -> None:
    assert checkpoints().restore(state(0)) is None
    assert checkpoints().best() is None


def test_the_last_few_and_the_best_are_kept(checkpoints: Open) -> None:
    run = checkpoints()
    for step, loss in ((1, 0.9), (2, 0.1), (3, 0.5), (4, None), (5, 0.7)):
        save(run, step, loss)
    assert run.steps() == [2, 4, 5]
    again = checkpoints()  # as when the run goes on
    assert again.best() == 2
    save(again, 6, 0.6)
    assert again.steps() == [2, 5, 6]


def test_the_arrays_may_change_as_soon_as_save_returns(checkpoints: Open) -> None:
    run = checkpoints()
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    run.save(7, before := state(7), {})
    step(before)  # writes over the buffers
    run.wait()
    restored = checkpoints().restore(state(0))
    assert restored is not None
    np.testing.assert_array_equal(restored[0].params["layers"]["kernel"], np.full((2, 3), 7.0))


def damage(item: Path) -> None:
    """Cuts all files of an item of a checkpoint short."""
    for file in item.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])


@pytest.mark.parametrize("item", ["weights", "optimizer", "run"])
def test_a_damaged_one_is_named_and_the_one_before_it_taken(
    item: str, checkpoints: Open, tmp_path: Path
) -> None:
    run = checkpoints()
    for step in (1, 2):
        save(run, step)
    damage(tmp_path / "checkpoints" / "2" / item)
    said: list[str] = []
    restored = checkpoints(said).restore(state(0))
    assert restored is not None and restored[1] == {"step": 1}
    assert len(said) == 1 and "checkpoints/2 is damaged" in said[0]
    assert (tmp_path / "checkpoints" / "2.damaged").is_dir()


def test_one_that_is_damaged_again_is_set_aside_beside_the_first(
    checkpoints: Open, tmp_path: Path
) -> None:
    save(checkpoints(), 1)
    said: list[str] = []
    for _ in range(2):
        save(checkpoints(), 2)
        damage(tmp_path / "checkpoints" / "2" / "weights")
        restored = checkpoints(said).restore(state(0))
        assert restored is not None and restored[1] == {"step": 1}
    assert [line.partition("is now ")[2] for line in said] == ["2.damaged", "2.damaged-2"]


def test_one_that_cannot_be_read_just_now_is_left_alone(
    checkpoints: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(checkpoints(), step)

    def read(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoints, "_read", read)
        with pytest.raises(UserError, match=r"checkpoints/2 cannot be read now \(Too many open"):
            checkpoints().restore(state(0))
    restored = checkpoints().restore(state(0))
    assert restored is not None and restored[1] == {"step": 2}


def test_a_half_written_one_is_not_there(checkpoints: Open, tmp_path: Path) -> None:
    save(checkpoints(), 1)
    whole = tmp_path / "checkpoints" / "1"
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir()
    assert checkpoints().steps() == [1]
    assert whole.is_dir()


def test_the_state_of_another_model_is_refused_and_left_alone(
    checkpoints: Open, tmp_path: Path
) -> None:
    save(checkpoints(), 1)
    with pytest.raises(UserError, match=r"weights are those of another model.*1 misshapen"):
        checkpoints().restore(state(0, width=4))
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_that_all_are_damaged_is_an_error(checkpoints: Open, tmp_path: Path) -> None:
    save(checkpoints(), 1)
    for file in (tmp_path / "checkpoints" / "1" / "weights").rglob("*"):
        if file.is_file():
            file.unlink()
    for _ in range(2):  # and stays one, when they are set aside
        with pytest.raises(UserError, match="none of the checkpoints"):
            checkpoints().restore(state(0))
