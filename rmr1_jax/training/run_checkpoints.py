"""The checkpoints of a run: everything it takes to go on as if nothing had happened.

`checkpoints/STEP/` holds `weights` (what is trained), `optimizer` (moments and counters) and `run`
(the position in the data, as JSON). Orbax writes a step in the background under another name and
renames it when it is whole, so a kill at any moment leaves the earlier ones as they are.
"""

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from rmr1_jax.distributed.hosts import any_process, broadcast_from_primary
from rmr1_jax.errors import UserError
from rmr1_jax.models.checkpoint import CHECKPOINTS, WEIGHTS, quiet_orbax
from rmr1_jax.models.weight_map import check_shapes
from rmr1_jax.training.step import TrainState

OPTIMIZER, RUN = "optimizer", "run"
SCORE = "score"
DAMAGED = ".damaged"


class RunCheckpoints:
    """Saves asynchronously, keeps the last few and the best, and finds the latest that is whole.

    Args:
      workdir: the run's.
      keep: this many of the latest are kept, and the one with the lowest score.
      warn: told, in a sentence, of every checkpoint that cannot be read.
    """

    def __init__(self, workdir: Path, *, keep: int, warn: Callable[[str], None]) -> None:
        self.directory = (workdir / CHECKPOINTS).absolute()
        self.warn = warn
        best = managers.BestN(
            get_metric_fn=lambda metrics: metrics[SCORE],
            reverse=True,  # the lowest comes last, and the last is kept
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policy = managers.AnyPreservationPolicy([managers.LatestN(n=keep), best])
        with quiet_orbax():
            self._manager = ocp.CheckpointManager(
                self.directory,
                item_handlers={
                    WEIGHTS: ocp.StandardCheckpointHandler(),
                    OPTIMIZER: ocp.StandardCheckpointHandler(),
                    RUN: ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policy,
                    # The policy decides; without this, the metrics would not be kept on the disk.
                    best_fn=lambda metrics: metrics[SCORE],
                    best_mode="min",
                    cleanup_tmp_directories=True,
                ),
            )

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the lowest score among those that are kept and have one."""
        found = {step: self._manager.metrics(step) for step in self.steps()}
        scores = {step: metrics[SCORE] for step, metrics in found.items() if metrics}
        return min(scores, key=lambda step: scores[step], default=None)

    def save(
        self,
        step: int,
        state: TrainState,
        data: Mapping[str, Any],
        *,
        score: float | None = None,
    ) -> None:
        """Start to save; returns when the arrays may be changed. Raises what an earlier one met.

        `score` is that of a validation, and lower is better.
        """
        counters = {"step": state.step, "bad_steps": state.bad_steps, "skipped": state.skipped}
        with quiet_orbax():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        WEIGHTS: ocp.args.StandardSave(state.params),
                        OPTIMIZER: ocp.args.StandardSave(
                            {"moments": state.optimizer, "counters": counters}
                        ),
                        RUN: ocp.args.JsonSave({"data": dict(data)}),
                    }
                ),
                metrics=None if score is None else {SCORE: score},
                force=True,
            )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The latest state that can be read and its position in the data; None if there is none.

        A damaged checkpoint is named, set aside and the one before it tried. `like` gives shapes,
        types and shardings (arrays or `jax.ShapeDtypeStruct`). Raises UserError where a checkpoint
        is of another model or cannot be read now, or all of them are damaged, also if an earlier
        start has found that.
        """
        steps = self.steps()
        for step in reversed(steps):
            found = None
            damage: Exception | None = None
            try:
                with quiet_orbax():
                    found = self._read(step, like)
            except (UserError, MemoryError, jax.errors.JaxRuntimeError):
                raise
            except OSError as error:
                if not isinstance(error, FileNotFoundError | NotADirectoryError):
                    raise UserError(
                        f"checkpoint {self.directory / str(step)} cannot be read now "
                        f"({error.strerror or error}). Mend that, and run the same command again; "
                        "it was left as it is."
                    ) from error
                damage = error
            except Exception as error:  # Orbax and TensorStore raise a dozen kinds for damage
                damage = error
            if not any_process(damage is not None):
                return found
            self._set_aside(step, damage or "another process cannot read its part")
        if steps or any(self.directory.glob(f"*{DAMAGED}*")):
            raise UserError(
                f"none of the checkpoints in {self.directory} can be read. "
                "Start again in another --workdir."
            )
        return None

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        target = jax.tree.map(_abstract, like)
        counters = {"step": target.step, "bad_steps": target.bad_steps, "skipped": target.skipped}
        moments = {"moments": target.optimizer, "counters": counters}
        found = self._manager.item_metadata(step)
        for item, wanted in ((WEIGHTS, target.params), (OPTIMIZER, moments)):
            self._refuse_other_model(step, item, wanted, found)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    WEIGHTS: ocp.args.StandardRestore(target.params),
                    OPTIMIZER: ocp.args.StandardRestore(moments),
                    RUN: ocp.args.JsonRestore(),
                }
            ),
        )
        optimizer = restored[OPTIMIZER]
        state = TrainState(
            params=restored[WEIGHTS], optimizer=optimizer["moments"], **optimizer["counters"]
        )
        return state, restored[RUN]["data"]

    def _refuse_other_model(self, step: int, item: str, wanted: Any, found: Any) -> None:
        stored = found[item]
        if stored is None:
            raise ValueError(f"{item} is missing")
        check_shapes(
            f"{self.directory / str(step)}: {item} are those of another model",
            _shapes(wanted),
            _shapes(stored.tree if hasattr(stored, "tree") else stored),
        )

    def _set_aside(self, step: int, error: object) -> None:
        place = self.directory / str(step)

        def rename() -> str:
            aside = place.with_name(f"{step}{DAMAGED}")
            for number in count(2):
                if not aside.exists():
                    break
                aside = place.with_name(f"{step}{DAMAGED}-{number}")
            return place.rename(aside).name

        aside = broadcast_from_primary(rename, about=place)
        self._manager.reload()
        reason = str(error).strip().split("\n")[0][:200]
        self.warn(f"checkpoint {place} is damaged ({reason}); it is now {aside}")

    def wait(self) -> None:
        """Until all that was started is on the disk. Raises what it met."""
        with quiet_orbax():
            self._manager.wait_until_finished()

    def close(self) -> None:
        with quiet_orbax():
            self._manager.close()


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
