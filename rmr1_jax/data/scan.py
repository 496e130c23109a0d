"""The first pass over a mixture: what is to be known of each row, in a few bytes on disk.

Reading, hashing and measuring are done once, row by row; what is kept is then decided by arithmetic
on small numbers (`splits.py`), and the second pass writes it. An interrupted survey goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from rmr1_jax.data.decontamination import Benchmarks
from rmr1_jax.data.dedup import PERMUTATIONS, content_hash, signature
from rmr1_jax.data.example import Example
from rmr1_jax.data.ngrams import hash_text
from rmr1_jax.data.preference_file import Rejects
from rmr1_jax.data.row_files import decode_row, row_text
from rmr1_jax.data.sources import Row, RowSource, read_sources
from rmr1_jax.judging import RecordError

RowStats = Shaped[np.ndarray, " N"]
"""One structured element a row, of `row_stats_type`."""

_FLUSH = 256  # rows


class Status(IntEnum):
    """What becomes of a row. `survey` knows those up to TOO_LONG."""

    USABLE = 0
    BAD = 1
    FILTERED = 2
    IDENTICAL = 3
    SAME_QUESTION = 4
    SHARED_WORDS = 5
    TOO_LONG = 6
    DUPLICATE = 7
    NEAR_DUPLICATE = 8
    NOT_CHOSEN = 9


NO_EXAMPLE = (Status.BAD, Status.FILTERED, Status.IDENTICAL)


def row_stats_type(*, signatures: bool) -> np.dtype[Any]:
    """`label` is 1 for A, 2 for B, 0 for none; `filter` the number of the filter that took it out.

    `lot` is a hash of seed and id, from which all choices are drawn.
    """
    small: list[Any] = [("status", "u1"), ("label", "u1"), ("rendered", "u1"), ("source", "<u2")]
    columns = [*small, ("filter", "<u2"), ("content", "<u8"), ("lot", "<u8")]
    return np.dtype(columns + [("signature", "<u4", (PERMUTATIONS,))] * signatures)


@dataclass(frozen=True)
class RowScanner:
    """Looks at one row after the other.

    Args:
      signatures: whether to compute what near duplicates are found by.
      length: tokens of an example's prompt; at most `max_tokens`. It may raise RecordError.
      rejects: gets bad records and those without two different responses, with the reason.
    """

    sources: Sequence[RowSource]
    seed: int
    rejects: Rejects
    signatures: bool = False
    benchmarks: Benchmarks | None = None
    length: Callable[[Example], int] | None = None
    max_tokens: int = 0

    def examine(self, source: int, row: Row) -> tuple[Any, ...]:
        """The facts about a row."""
        empty = (0, 0, 0, 0, np.zeros(PERMUTATIONS, np.uint32))
        try:
            record = decode_row(row.raw)
            number = self.sources[source].filtered_by(record)
            if number is not None:
                return self._facts(Status.FILTERED, source, number, *empty)
            example = self.sources[source].example(record, row.default_id)
            status = self._status(example)
        except RecordError as error:
            self.rejects(row.number, f"{row.place}: {error}", row_text(row.raw))
            return self._facts(Status.BAD, source, 0, *empty)
        if status is Status.IDENTICAL:
            reason = "the two responses are the same; there must be two different ones"
            self.rejects(row.number, f"{row.place}: {reason}", row_text(row.raw))
        return self._facts(
            status,
            source,
            0,
            {"A": 1, "B": 2, None: 0}[example.label],
            example.preference is None,
            content_hash(example),
            hash_text(example.id, key=str(self.seed)),
            signature(example) if self.signatures else empty[-1],
        )

    def _facts(
        self,
        status: Status,
        source: int,
        filter: int,
        label: int,
        rendered: bool | int,
        content: int,
        lot: int,
        signature: Any,
    ) -> tuple[Any, ...]:
        facts = (status, label, rendered, source, filter, content, lot)
        return (*facts, signature) if self.signatures else facts

    def _status(self, example: Example) -> Status:
        pair = example.preference
        if pair and pair.context_b is None and pair.response_a.strip() == pair.response_b.strip():
            return Status.IDENTICAL
        overlap = self.benchmarks.overlap(example) if self.benchmarks else None
        if overlap is not None:
            return Status.SAME_QUESTION if overlap == "question" else Status.SHARED_WORDS
        if self.length is not None and self.length(example) > self.max_tokens:
            return Status.TOO_LONG
        return Status.USABLE


def survey(examiner: RowScanner, file: Path, on_row: Callable[[int], None]) -> RowStats:
    """The facts about all rows, as a memory map of `file`; rows that it has already are skipped.

    `on_row` gets the number of rows so far.
    """
    kind = row_stats_type(signatures=examiner.signatures)
    if not file.exists():
        part = file.with_name(file.name + ".part")
        with part.open("ab") as out:
            done = out.tell() // kind.itemsize
            out.truncate(done * kind.itemsize)
            rows = islice(read_sources(examiner.sources), done, None)
            for facts in _batches(examiner.examine(*row) for row in rows):
                out.write(np.array(facts, kind).tobytes())
                out.flush()
                done += len(facts)
                on_row(done)
        part.replace(file)
    if not file.stat().st_size:
        return np.zeros(0, kind)
    return np.memmap(file, kind, "r")


def _batches(facts: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    while batch := list(islice(facts, _FLUSH)):
        yield batch
