"""Rows of a benchmark's files, and pairs made of them."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rmr1_jax.data.hub_datasets import hub_rows
from rmr1_jax.data.preference_file import Rejects
from rmr1_jax.data.row_files import SUFFIXES, data_files, decode_row, file_rows, is_remote, row_text
from rmr1_jax.errors import UserError
from rmr1_jax.judging import Preference, RecordError, preference_from_record

Fields = Mapping[str, Any]
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


class Row(NamedTuple):
    """A record and where it stands. One that cannot be read holds its place with no fields."""

    place: str
    number: int
    fields: Fields | None


class Source:
    """The rows of one benchmark, and the rejects that its loader adds to."""

    def __init__(self, rows: list[Row], rejects: Rejects) -> None:
        self.rows = rows
        self._rejects = rejects
        self._several = len({row.place for row in rows}) > 1

    def reject(self, row: Row, reason: str, raw: object = None) -> None:
        """Say what is wrong with a row, and in which file where there are several."""
        where = f"{row.place}: " if self._several else ""
        text = row_text(row.fields if raw is None else raw)
        self._rejects(row.number, where + reason, text)


def read_rows(
    title: str,
    source: str,
    rejects: Rejects,
    *,
    layouts: Sequence[Sequence[str]],
    hub: Sequence[tuple[str, str]],
    pick: Callable[[list[str]], list[str]] = lambda files: files,
) -> Source:
    """All rows of a source, file after file in order of name.

    Args:
      title: what an error calls the benchmark.
      source: a file, a directory, or a name on the hub; "" is `hub`.
      layouts: the fields that every record must have, in one of these ways.
      hub: name and split of each data set that holds the benchmark, or a part of it.
      pick: which of a directory's files to read.

    Raises UserError for a source that cannot be read, is cut short, holds nothing, or none of whose
    records has the fields.
    """
    parts: Iterable[tuple[str, Iterable[tuple[int, object]]]]
    if is_file(source):
        parts = [(file, file_rows(file)) for file in pick(data_files(source))]
    else:
        named = [(source, hub[0][1])] if source else hub
        parts = [(name, hub_rows(title, name, split)()) for name, split in named]
    decoded = [(place, *decoded_rows(place, rows, layouts)) for place, rows in parts]
    found = Source([row for _, rows, _ in decoded for row in rows], rejects)
    for _, _, bad in decoded:
        for row, reason, raw in bad:
            found.reject(row, reason, raw)
    return found


def is_file(source: str) -> bool:
    """Whether a source names files, and not a data set on the hub."""
    if not source:
        return False
    by_name = _HUB_NAME.fullmatch(source) is None or source.endswith(SUFFIXES)
    return by_name or is_remote(source) or Path(source).exists()


def decoded_rows(
    place: str, rows: Iterable[tuple[int, object]], layouts: Sequence[Sequence[str]]
) -> tuple[list[Row], list[tuple[Row, str, object]]]:
    """(rows, bad ones with reason and text). Raises UserError as `read_rows` does."""
    good: list[Row] = []
    bad: list[tuple[Row, str, object]] = []
    broken = ""
    for number, raw in rows:
        row, broken = Row(place, number, None), ""
        try:
            record = decode_row(raw)
        except RecordError as error:
            broken = str(error)
            bad.append((row, broken, raw))
        else:
            if isinstance(record, Mapping):
                # A table has every column in every row: null is absent.
                row = Row(place, number, {k: v for k, v in record.items() if v is not None})
            else:
                bad.append((row, "record: is no object with named fields", raw))
        good.append(row)
    if not good:
        raise UserError(f"{place}: holds no records; get it again")
    if broken:
        raise UserError(f"{place}, line {number}: is cut short or damaged ({broken}); get it again")
    fields = {name: None for row in good for name in row.fields or ()}
    complete = any(
        row.fields is not None and any(set(layout) <= row.fields.keys() for layout in layouts)
        for row in good
    )
    if not complete:
        raise UserError(
            f"{place}: has the fields {', '.join(fields) or 'none'}; it needs "
            + ", or ".join(", ".join(layout) for layout in layouts)
        )
    return good, bad


def text(record: Fields, field: str) -> str:
    """A text that is not empty; a whole number is taken as one. Raises RecordError."""
    value = record.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RecordError(field, f"is {json.dumps(value, default=str)[:40]}; it must be a text")
    if not value.strip():
        raise RecordError(field, "is empty; it must hold some text")
    return clean(value)


def clean(text: str) -> str:
    """The text with U+FFFD for what JSON can spell and no UTF-8 file takes."""
    return _UNWRITABLE.sub("\ufffd", text)


def pair(
    id: str, prompt: object, chosen: object, rejected: object, names: Sequence[str]
) -> Preference:
    """The pair, the chosen response as A.

    `prompt` is a text or a list of messages; `names` are what an error calls prompt, chosen and
    rejected. Raises RecordError.
    """
    asked = "question" if isinstance(prompt, str) else "conversation"
    record = {"id": id, asked: prompt, "response_a": chosen, "response_b": rejected, "label": "A"}
    try:
        return preference_from_record(record, default_id=id)
    except RecordError as error:
        ours = {asked: names[0], "response_a": names[1], "response_b": names[2]}
        for theirs, name in ours.items():
            if error.field.startswith(theirs):
                raise RecordError(name + error.field.removeprefix(theirs), error.reason) from None
        raise
