"""Batches for a training step, from a token cache and a plan, through Grain.

Grain is behind this module only: it reads ahead in threads and says where it stands.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self, SupportsIndex

import grain
import numpy as np
from jaxtyping import Int

from rmr1_jax.data.packed_batch import Batch
from rmr1_jax.data.packing import Plan
from rmr1_jax.data.token_cache import TokenCache
from rmr1_jax.errors import UserError

Loss = Literal["sequence_mean", "token_mean"]


@dataclass(frozen=True, eq=False)
class Steps:
    """Random access to the batches of a plan; the source that Grain reads.

    Dimension R is split over processes into even, contiguous parts, and a process builds only its
    own. `loss` is sequence_mean (each sequence weighs 1, as published) or token_mean (each token
    weighs 1).
    """

    cache: TokenCache
    plan: Plan
    loss: Loss
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.plan.shape.rows % self.process_count:
            raise UserError(
                f"{self.plan.shape.rows} rows cannot be shared by {self.process_count} processes; "
                "let micro_batch_size times the devices of data and fsdp be a multiple of them"
            )

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: SupportsIndex) -> Batch:
        plan, cache = self.plan, self.cache
        shape = (plan.shape.micro_batches, plan.shape.rows // self.process_count)
        rows = self._own_rows(step.__index__())
        counts = plan.offsets[rows + 1] - plan.offsets[rows]
        sequences = plan.sequences[_ranges(plan.offsets[rows], counts)]
        row = np.repeat(np.arange(len(rows)), counts)
        number = _within(counts)
        starts, lengths = cache.offsets[sequences], cache.lengths[sequences]
        within = _within(lengths)  # of every token, its position in its sequence
        row_start = _starts_in_row(lengths, counts)

        tokens, positions, segment_ids = (
            np.zeros((len(rows), plan.shape.pack_length), np.int32) for _ in range(3)
        )
        place = np.repeat(row, lengths), np.repeat(row_start, lengths) + within
        tokens[place] = cache.tokens[_ranges(starts, lengths)]
        positions[place] = within
        segment_ids[place] = np.repeat(number + 1, lengths)

        loss_positions, loss_targets = (
            np.zeros((len(rows), plan.losses), np.int32) for _ in range(2)
        )
        loss_weights = np.zeros((len(rows), plan.losses), np.float32)
        verdicts = np.zeros((len(rows), plan.losses), bool)
        learnt, first = cache.loss_lengths[sequences], cache.loss_from[sequences]
        target = np.repeat(first, learnt) + _within(learnt)  # its position in its sequence
        target_in_row = np.repeat(row_start, learnt) + target
        loss_row = np.repeat(row, learnt)
        loss_start = _starts_in_row(learnt, counts)
        place = loss_row, np.repeat(loss_start, learnt) + _within(learnt)
        loss_positions[place] = target_in_row - 1
        loss_targets[place] = tokens[loss_row, target_in_row]
        weights = 1.0 / learnt if self.loss == "sequence_mean" else np.ones(len(learnt))
        loss_weights[place] = np.repeat(weights, learnt)
        verdicts[place] = target == np.repeat(cache.verdict[sequences], learnt)

        return Batch(
            *(
                array.reshape(*shape, -1)
                for array in (
                    tokens,
                    positions,
                    segment_ids,
                    loss_positions,
                    loss_targets,
                    loss_weights,
                    verdicts,
                )
            )
        )

    def ids_of(self, step: int) -> list[str]:
        """The ids of the examples that all processes learn from in a step."""
        return [self.cache.ids[sequence] for sequence in self.plan.sequences_of(step)]

    def _own_rows(self, step: int) -> Int[np.ndarray, " rows"]:
        rows = np.array(self.plan.rows_of(step)).reshape(self.plan.shape.micro_batches, -1)
        own = rows.shape[1] // self.process_count
        return rows[:, self.process_index * own : (self.process_index + 1) * own].reshape(-1)


class Batches(Iterator[Batch]):
    """Iterates over the batches of a plan; its state is part of a checkpoint."""

    def __init__(self, steps: Steps, *, start_step: int = 0, prefetch: int = 4) -> None:
        self.steps = steps
        options = grain.ReadOptions(num_threads=min(prefetch, 2), prefetch_buffer_size=prefetch)
        self._iterator = iter(grain.MapDataset.source(steps).to_iter_dataset(options))
        self._move_to(start_step)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    @property
    def step(self) -> int:
        """The step whose batch comes next."""
        return int(self._iterator.get_state()["next_index"])

    def get_state(self) -> dict[str, Any]:
        """Where the iterator stands, as plain JSON. Batches read ahead are not counted."""
        return {"step": self.step, "plan": self.steps.plan.fingerprint, "data": self._data()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was. Raises UserError where the data are not the same now."""
        if (state["plan"], state["data"]) != (self.steps.plan.fingerprint, self._data()):
            raise UserError(
                "the traces, the tokenizer, or how they fill a batch have changed since the "
                "checkpoint was written; go back to what they were, or start in another workdir"
            )
        self._move_to(state["step"])

    def close(self) -> None:
        """Stop reading ahead."""
        self._iterator.close()

    def _data(self) -> str:
        return self.steps.cache.key

    def _move_to(self, step: int) -> None:
        self._iterator.set_state({"next_index": step})


def batches(
    cache: TokenCache,
    plan: Plan,
    *,
    loss: Loss,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    prefetch: int = 4,
) -> Batches:
    """This process's rows of every step from `start_step` on, read ahead by `prefetch` steps.

    Raises UserError where the rows of a step cannot be shared evenly by the processes.
    """
    steps = Steps(cache, plan, loss, process_index, process_count)
    return Batches(steps, start_step=start_step, prefetch=prefetch)


def _within(counts: Int[np.ndarray, " N"]) -> Int[np.ndarray, " M"]:
    """0, 1, ... up to each count, one after the other."""
    return _ranges(np.zeros_like(counts), counts)


def _ranges(starts: Int[np.ndarray, " N"], counts: Int[np.ndarray, " N"]) -> Int[np.ndarray, " M"]:
    """start, start + 1, ... for each count, one after the other."""
    ends = np.cumsum(counts, dtype=np.int64)
    return np.arange(counts.sum()) + np.repeat(starts - (ends - counts), counts)


def _starts_in_row(
    lengths: Int[np.ndarray, " N"], counts: Int[np.ndarray, " rows"]
) -> Int[np.ndarray, " N"]:
    """Where each sequence starts in its row, if rows hold `counts` sequences side by side."""
    before = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    first_of_row = np.cumsum(counts) - counts
    return before[:-1] - np.repeat(before[first_of_row], counts)
