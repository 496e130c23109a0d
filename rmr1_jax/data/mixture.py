"""The second pass over a mixture: what was planned is read again, placed and written."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from rmr1_jax.data.dedup import content_hash
from rmr1_jax.data.example import Example
from rmr1_jax.data.preference_store import StoreWriter
from rmr1_jax.data.row_files import decode_row
from rmr1_jax.data.scan import RowStats
from rmr1_jax.data.sources import RowSource, read_sources, with_id
from rmr1_jax.data.splits import SPLITS, Plan, repeated_ids
from rmr1_jax.errors import UserError
from rmr1_jax.judging import Side

_SIDES: tuple[Side | None, ...] = (None, "A", "B")


def write_mixture(
    sources: Sequence[RowSource],
    facts: RowStats,
    plan: Plan,
    writer: StoreWriter,
    on_record: Callable[[int], None],
) -> None:
    """Append every planned example to its split, skipping what the writer has already.

    Raises UserError where a source is no longer what the survey saw.
    """
    writers = {
        number: writer.split(name)
        for number, name in enumerate(SPLITS)
        if (plan.split == number).any()
    }
    skip = {number: split.done for number, split in writers.items()}
    again = repeated_ids(facts)
    read = written = 0
    for read, (index, row) in enumerate(read_sources(sources), start=1):
        if read > len(facts):
            break
        number = int(plan.split[read - 1])
        if number not in writers:
            continue
        written += 1
        if skip[number]:
            skip[number] -= 1
            continue
        try:
            example = sources[index].example(decode_row(row.raw), row.default_id)
        except ValueError as error:
            raise _changed(sources[index], f"{row.place}, record {row.number}") from error
        if content_hash(example) != facts["content"][read - 1]:
            raise _changed(sources[index], f"{row.place}, record {row.number}")
        if again[read - 1]:
            example = with_id(example, f"{example.id}#{read}")
        writers[number].append(place(example, _SIDES[plan.label[read - 1]]))
        on_record(written)
    if read != len(facts):
        raise _changed(sources[-1], f"{read} records instead of {len(facts)}")


def place(example: Example, side: Side | None) -> Example:
    """The example with its chosen response on a side; None: as it is."""
    if side is None or example.preference is None or example.label == side:
        return example
    return replace(example, label=side, preference=example.preference.swapped())


def _changed(source: RowSource, where: str) -> UserError:
    return UserError(
        f"source {source.label}: has changed since it was surveyed ({where}); "
        "delete the output and start again"
    )
