"""Which sequences share a row: planned from their lengths alone, before training starts.

A seeded order is streamed through best-fit into rows of one fixed length, so that a whole run needs
one compiled step. The plan is a function of its arguments: it is made again at every start, and a
step's number says which examples it learns from.
"""

import hashlib
import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from rmr1_jax.errors import UserError

OPEN_ROWS = 128
"""Rows that a sequence may still join: more pack tighter, and mix the order more."""
LOSS_CHUNK = 256
_SAMPLE = 4096  # sequences that a row length is tried on
_TRIED = 48  # row lengths tried
_SPARE_LOSSES = 1.4


class Rows(NamedTuple):
    """The shape of a step: S micro-batches of R rows of T tokens, and the sequences it holds."""

    pack_length: int
    micro_batches: int
    rows: int
    mean_sequences: float

    @property
    def per_step(self) -> int:
        return self.micro_batches * self.rows


@dataclass(frozen=True, eq=False)
class Plan:
    """Rows of steps, in order: row i holds `sequences[offsets[i]:offsets[i + 1]]`, side by side.

    `losses` is W, the losses a row has room for. `dropped` counts the sequences of the last,
    incomplete step, which is not run; `padding` is the share of padding in the others.
    """

    shape: Rows
    losses: int
    sequences: Int[np.ndarray, " M"]
    offsets: Int[np.ndarray, " rows+1"]
    dropped: int
    padding: float

    @property
    def steps(self) -> int:
        return (len(self.offsets) - 1) // self.shape.per_step

    @property
    def mean_sequences(self) -> float:
        """Sequences a step."""
        return len(self.sequences) / self.steps

    @cached_property
    def fingerprint(self) -> str:
        """A digest, by which a resumed run knows that it reads the same steps.

        How a step's rows are divided into micro-batches does not matter: it changes with the mesh.
        """
        shape = self.shape.pack_length, self.shape.per_step, self.losses
        digest = hashlib.sha256(repr(shape).encode())
        digest.update(self.sequences.tobytes())
        digest.update(self.offsets.tobytes())
        return digest.hexdigest()

    def rows_of(self, step: int) -> range:
        """The rows of a step: those of micro-batch 0 first."""
        return range(step * self.shape.per_step, (step + 1) * self.shape.per_step)

    def sequences_of(self, step: int) -> Int[np.ndarray, " M"]:
        rows = self.rows_of(step)
        return self.sequences[self.offsets[rows.start] : self.offsets[rows.stop]]


def choose_rows(
    lengths: Int[np.ndarray, " N"],
    batch_size: int,
    row_multiple: int,
    micro_batch_size: int,
    max_length: int,
    pack_length: int | None = None,
) -> Rows:
    """The shape of a step that holds about `batch_size` sequences with little padding.

    R is row_multiple * micro_batch_size, so that each of `row_multiple` groups of devices computes
    `micro_batch_size` rows at a time; S makes up the rest of the batch. Row lengths from the
    longest sequence to `max_length` or one and a half times the longest are tried on a sample: a
    percent of padding and a percent of deviation from `batch_size` weigh the same, and so does half
    as long a row again, since attention reads whole rows. With few sequences for the devices
    `mean_sequences` may be far from `batch_size`; the caller says so.

    Args:
      lengths: tokens of each sequence.
      pack_length: taken as it is, if given.

    Raises UserError where `pack_length` is too short for a sequence.
    """
    longest, rows = int(lengths.max()), row_multiple * micro_batch_size
    if pack_length is not None:
        if pack_length < longest:
            raise UserError(
                f"pack_length={pack_length} is shorter than the longest sequence of {longest} "
                f"tokens; raise it, or lower max_length"
            )
        tried = [pack_length]
    else:
        unit = 128 if longest > 512 else 16
        first = _round_up(longest, unit)
        last = max(first * 3 // 2, min(_round_up(max_length, unit), 8 * first))
        stride = _round_up(max((last - first) // _TRIED, 1), unit)
        tried = list(range(first, last + 1, stride))
    sample = np.random.default_rng(0).permutation(lengths)[:_SAMPLE]
    nothing = np.zeros_like(sample)
    best: tuple[float, Rows] | None = None
    for length in tried:
        packed = list(_pack(np.arange(len(sample)), sample, nothing, length, 0))
        per_row = len(sample) / len(packed)
        wanted = batch_size / (rows * per_row)
        micro_batches = max(1, round(wanted))
        padding = 1 - sample.sum() / (len(packed) * length)
        cost = padding + abs(micro_batches / wanted - 1) + 0.02 * (length / tried[0] - 1)
        if best is None or cost < best[0]:
            shape = Rows(length, micro_batches, rows, micro_batches * rows * per_row)
            best = (float(cost), shape)
    assert best is not None
    return best[1]


def plan(
    lengths: Int[np.ndarray, " N"],
    loss_lengths: Int[np.ndarray, " N"],
    shape: Rows,
    *,
    epochs: float,
    seed: int,
    loss_chunk: int = LOSS_CHUNK,
) -> Plan:
    """Plan seeded epochs; the last, incomplete step is dropped and counted, as published.

    Each epoch is a permutation of all sequences, a fraction of one its beginning. A row may hold
    the end of one epoch and the beginning of the next.

    Raises UserError where there is not one full step.
    """
    rng = np.random.default_rng(seed)
    total = round(epochs * len(lengths))
    whole = [rng.permutation(len(lengths)) for _ in range(math.ceil(total / len(lengths)))]
    order = np.concatenate([*whole, np.empty(0, np.int64)])[:total]
    capacity = _losses(lengths, loss_lengths, shape.pack_length, loss_chunk)
    rows = list(_pack(order, lengths, loss_lengths, shape.pack_length, capacity))
    steps = len(rows) // shape.per_step
    if steps == 0:
        raise UserError(
            f"{total} sequences fill {len(rows)} rows of {shape.pack_length} tokens, and one step "
            f"takes {shape.per_step}; lower batch_size, or use fewer devices or more data"
        )
    kept = rows[: steps * shape.per_step]
    return _finished(kept, total, lengths, loss_lengths, shape, loss_chunk)


def plan_in_order(
    lengths: Int[np.ndarray, " N"],
    loss_lengths: Int[np.ndarray, " N"],
    shape: Rows,
    *,
    loss_chunk: int = LOSS_CHUNK,
) -> Plan:
    """Plan every sequence once, unshuffled, as validation does; empty rows fill the last step."""
    capacity = _losses(lengths, loss_lengths, shape.pack_length, loss_chunk)
    order = np.arange(len(lengths))
    rows = list(_pack(order, lengths, loss_lengths, shape.pack_length, capacity))
    rows += [[] for _ in range(-len(rows) % shape.per_step)]
    return _finished(rows, len(order), lengths, loss_lengths, shape, loss_chunk)


def _finished(
    rows: list[list[int]],
    total: int,
    lengths: Int[np.ndarray, " N"],
    loss_lengths: Int[np.ndarray, " N"],
    shape: Rows,
    loss_chunk: int,
) -> Plan:
    sequences = np.array([sequence for row in rows for sequence in row], np.int32)
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    sums = np.concatenate([[0], np.cumsum(loss_lengths[sequences], dtype=np.int64)])[offsets]
    most = int(np.diff(sums).max())
    return Plan(
        shape=shape,
        losses=_round_up(most, _chunk(loss_chunk, shape.pack_length)),
        sequences=sequences,
        offsets=offsets,
        dropped=total - len(sequences),
        padding=float(1 - lengths[sequences].sum() / (len(rows) * shape.pack_length)),
    )


def _losses(
    lengths: Int[np.ndarray, " N"],
    loss_lengths: Int[np.ndarray, " N"],
    pack_length: int,
    loss_chunk: int,
) -> int:
    """Losses that a row may hold: the output head is computed for so many, filled or not."""
    mean = pack_length * loss_lengths.sum() / lengths.sum()
    least = max(int(loss_lengths.max()), math.ceil(_SPARE_LOSSES * mean))
    return _round_up(least, _chunk(loss_chunk, pack_length))


def _chunk(loss_chunk: int, pack_length: int) -> int:
    """`loss_chunk`, or less in short rows, where it would be much of a row."""
    return min(loss_chunk, max(16, pack_length // 8 // 16 * 16))


def _pack(
    order: Int[np.ndarray, " M"],
    lengths: Int[np.ndarray, " N"],
    loss_lengths: Int[np.ndarray, " N"],
    pack_length: int,
    row_losses: int,
) -> Iterator[list[int]]:
    """Best-fit in a stream: each sequence goes to the fullest open row that takes it.

    Where none does and OPEN_ROWS are open, the fullest of them comes out. At the end the rest come
    out, the fullest first.
    """
    shortest, least_losses = int(lengths.min()), int(loss_lengths.min())
    # (tokens left << 32) + row: sorted, and cheaper than tuples at a million sequences
    open_rows: list[int] = []
    rows: dict[int, list[int]] = {}
    losses_left: dict[int, int] = {}
    mask = (1 << 32) - 1
    sizes = zip(order.tolist(), lengths[order].tolist(), loss_lengths[order].tolist(), strict=True)
    for number, (sequence, length, losses) in enumerate(sizes):
        at = bisect_left(open_rows, length << 32)
        while at < len(open_rows) and losses_left[open_rows[at] & mask] < losses:
            at += 1
        if at < len(open_rows):
            entry = open_rows.pop(at)
        else:
            if len(open_rows) == OPEN_ROWS:
                yield rows.pop(open_rows.pop(0) & mask)
            entry = (pack_length << 32) + number
            rows[number], losses_left[number] = [], row_losses
        entry -= length << 32
        row = entry & mask
        rows[row].append(sequence)
        losses_left[row] -= losses
        if entry >> 32 < shortest or losses_left[row] < least_losses:
            yield rows.pop(row)
        else:
            insort(open_rows, entry)
    for entry in open_rows:
        yield rows.pop(entry & mask)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
