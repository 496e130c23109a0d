"""Sources of preferences by name or path, all read in one way."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rmr1_jax.data.converters import example_from_preference, example_from_record, shown_fields
from rmr1_jax.data.example import Example
from rmr1_jax.data.hub_datasets import hub_rows, tfds_rows
from rmr1_jax.data.preference_store import ExampleStore, is_complete
from rmr1_jax.data.row_files import data_files, decode_row, file_rows, is_remote
from rmr1_jax.errors import UserError
from rmr1_jax.judging import Preference, RecordError

# Records that a source is judged by before it is accepted.
LOOKED_AT = 100
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


class Row(NamedTuple):
    """A record or undecoded line, its number from 1 and the place it comes from."""

    place: str
    number: int
    raw: object
    default_id: str


@dataclass(frozen=True)
class RowSource:
    """One source of a mixture. `rows()` reads it from the beginning, the same rows each time."""

    label: str
    rows: Callable[[], Iterator[Row]]
    exclude: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def filters(self) -> list[tuple[str, str]]:
        """(field, value) of each filter, in order."""
        return [(name, value) for name, values in self.exclude.items() for value in values]

    def filtered_by(self, record: object) -> int | None:
        """The number of the filter that takes a record out."""
        if not isinstance(record, Mapping):
            return None
        for number, (name, value) in enumerate(self.filters):
            if str(record.get(name)) == value:
                return number
        return None

    def example(self, record: object, default_id: str) -> Example:
        """Raises RecordError."""
        if isinstance(record, Preference):
            return example_from_preference(record, source=self.label)
        if isinstance(record, Example):
            return with_id(replace(record, source=self.label), f"{self.label}/{record.id}")
        if isinstance(record, Mapping):
            renamed = {ours: record.get(theirs) for ours, theirs in self.fields.items()}
            theirs = set(self.fields.values())
            rest = {name: value for name, value in record.items() if name not in theirs}
            record = rest | renamed
        return example_from_record(record, source=self.label, default_id=default_id)

    def check(self) -> None:
        """Refuse a source of which none of the first records can be used. Raises UserError."""
        seen: dict[str, None] = {}
        problem = "it holds no records"
        usable = False
        for row in islice(self.rows(), LOOKED_AT):
            try:
                record = decode_row(row.raw)
                if isinstance(record, Mapping):
                    seen |= dict.fromkeys(map(str, record))
                if self.filtered_by(record) is None:
                    self.example(record, row.default_id)
                usable = True
            except RecordError as error:
                problem = problem if problem.startswith("the first") else f"the first: {error}"
        missing = [name for name in (*self.exclude, *self.fields.values()) if name not in seen]
        if missing and (seen or usable):
            raise UserError(
                f"source {self.label}: has no field {missing[0]!r}; it has {shown_fields(seen)}"
            )
        if not usable:
            raise UserError(
                f"source {self.label}: none of its first records is a preference ({problem}). It "
                "needs prompt, chosen and rejected, or question, response_a, response_b and label; "
                "a recipe's fields=... says what they are called here"
            )


def open_source(
    name: str,
    *,
    split: str = "train",
    exclude: Mapping[str, tuple[str, ...]] | None = None,
    fields: Mapping[str, str] | None = None,
    toy_task: tuple[int, int] = (0, 0),
) -> RowSource:
    """A source by name; what names there are, `config.Source` says.

    A directory that this package prepared is read as such; a path that exists, a URL, or a name
    that ends like a file, as files; any other name is one on the hub. `toy_task` is (count, seed)
    of the source of that name. Raises UserError where it cannot be opened, lacks a field, or holds
    no preference.
    """
    exclude, fields = dict(exclude or {}), dict(fields or {})
    label = name
    if name in _BUILT_IN:
        built_in = _BUILT_IN[name]
        exclude = {**built_in.exclude, **exclude}
        rows = _numbered(name, hub_rows(name, built_in.hub, split, select=built_in.select))
    elif name == "toy_task":
        from rmr1_jax.toy_task import toy_preferences  # brings transformers

        rows = _numbered(name, lambda: enumerate(toy_preferences(*toy_task), start=1))
    elif name.startswith("tfds:"):
        rows = _numbered(name, tfds_rows(name, name.removeprefix("tfds:"), split))
    elif is_complete(name):
        rows = _numbered(name, partial(_rows_of_store, name, split))
    elif is_remote(name) or Path(name).exists() or not _HUB_NAME.fullmatch(name) or _is_file(name):
        label = name.rstrip("/").rpartition("/")[2]
        rows = partial(_rows_of_files, label, data_files(name))
    else:
        rows = _numbered(name, hub_rows(name, name, split))
    source = RowSource(label, rows, exclude, fields)
    source.check()
    return source


def read_sources(sources: Iterable[RowSource]) -> Iterator[tuple[int, Row]]:
    """(index of the source, row) of every row, source after source."""
    for index, source in enumerate(sources):
        for row in source.rows():
            yield index, row


def with_id(example: Example, id: str) -> Example:
    """The same example, called otherwise."""
    pair = example.preference
    return replace(example, id=id, preference=None if pair is None else replace(pair, id=id))


@dataclass(frozen=True)
class _BuiltIn:
    hub: str
    exclude: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    select: Callable[[Any], Any] | None = None


def _published_code_subset(data: Any) -> Any:
    return data.shuffle(seed=42).select(range(min(8000, len(data))))


# RM-R1's mixture (mix_data.py; spec 1.4). The field mappings are in layouts.py.
_BUILT_IN = {
    "skywork": _BuiltIn(
        "Skywork/Skywork-Reward-Preference-80K-v0.2", exclude={"source": ("magpie_ultra",)}
    ),
    "code": _BuiltIn("Vezora/Code-Preference-Pairs", select=_published_code_subset),
    "math": _BuiltIn("xinlai/Math-Step-DPO-10K"),
}


def _is_file(name: str) -> bool:
    return name.endswith((".jsonl", ".json", ".parquet", ".gz"))


def _numbered(
    place: str, rows: Callable[[], Iterable[tuple[int, object]]]
) -> Callable[[], Iterator[Row]]:
    return lambda: (Row(place, number, raw, str(number)) for number, raw in rows())


def _rows_of_store(directory: str, split: str) -> Iterator[tuple[int, object]]:
    examples = ExampleStore(directory).split(split)
    return ((number, examples[number - 1]) for number in range(1, len(examples) + 1))


def _rows_of_files(label: str, files: list[str]) -> Iterator[Row]:
    """A record without an id is called by its number, and in a directory by its file as well."""
    for file in files:
        name = file.rpartition("/")[2]
        for number, raw in file_rows(file):
            yield Row(file, number, raw, str(number) if len(files) == 1 else f"{name}/{number}")
