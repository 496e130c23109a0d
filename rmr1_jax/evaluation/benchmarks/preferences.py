"""Any file of labelled preferences as a benchmark: accuracy by where its pairs come from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from rmr1_jax.data.example import Example
from rmr1_jax.data.preference_file import Rejects
from rmr1_jax.data.preference_store import is_complete
from rmr1_jax.data.row_files import decode_row, row_text
from rmr1_jax.data.sources import Row, open_source
from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmark import (
    GroupSums,
    Loaded,
    credits,
    mean_of_present,
    prompts_of,
    ratio,
)
from rmr1_jax.evaluation.record import Item, Record, Rule
from rmr1_jax.judging import RecordError

NAME = "preferences"
# A record's group is its source and its type; the first of these fields that it has is the type.
TYPES = ("type", "subset", "category")
WITHIN = " > "


def load(source: str, rejects: Rejects) -> Loaded:
    """Labelled pairs in any layout that training data may have; see `data.open_source`.

    Of a directory that `--stage=prepare` made, those that were held out.

    Raises UserError where the source cannot be opened or holds no preference.
    """
    if not source:
        raise UserError("preferences: have no published place; give a file, or a name on the hub")
    opened = open_source(source, split="validation" if is_complete(source) else "train")
    rows = list(opened.rows())
    several = len({row.place for row in rows}) > 1
    items: list[Item] = []
    seen: dict[str, int] = {}
    rejected = 0
    for index, row in enumerate(rows):
        try:
            record = _decoded(
                row, last=index + 1 == len(rows) or rows[index + 1].place != row.place
            )
            if opened.filtered_by(record) is not None:
                continue  # as training data leaves it out
            example = opened.example(record, row.default_id)
            preference = example.preference
            if preference is None:
                raise RecordError("context_messages", "is a rendered prompt; give the pair itself")
            id = example.id.removeprefix(f"{example.source}/")
            if id in seen:
                raise RecordError("id", f"{id!r}: was given to record {seen[id]}; make ids unique")
        except RecordError as error:
            where = f"{row.place}: " if several else ""
            rejects(row.number, where + str(error), row_text(row.raw))
            rejected += 1
            continue
        seen[id] = row.number
        items.append(
            Item(
                benchmark=NAME,
                id=id,
                index=index,
                group=_group(record, row),
                cell=None,
                pair=replace(
                    preference if preference.label == "A" else preference.swapped(), id=id
                ),
                draw=index,
            )
        )
    return Loaded(items, [f"{rejected:,} of {len(rows):,} records"] if rejected else [])


def _decoded(row: Row, last: bool) -> object:
    try:
        return decode_row(row.raw)
    except RecordError as error:
        if last:
            raise UserError(
                f"{row.place}, line {row.number}: is cut short or damaged ({error}); get it again"
            ) from error
        raise


def _group(record: object, row: Row) -> str:
    if isinstance(record, Example):
        return record.source
    said = record if isinstance(record, Mapping) else {}
    texts = {
        field: value
        for field in ("source", *TYPES)
        if isinstance(value := said.get(field), str) and value.strip()
    }
    type_ = next((texts[field] for field in TYPES if field in texts), None)
    parts = [each for each in (texts.get("source"), type_) if each is not None]
    return WITHIN.join(parts) or row.place.rstrip("/").rpartition("/")[2]


def _sources_and_types(groups: Sequence[str]) -> dict[str, list[int]]:
    """What is scored: each group, and before several groups of one source that source."""
    of_source: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        of_source.setdefault(group.split(WITHIN)[0], []).append(number)
    scored = {source: numbers for source, numbers in of_source.items() if len(numbers) > 1}
    scored |= {group: [number] for number, group in enumerate(groups)}
    return dict(sorted(scored.items()))


class PreferencesTable:
    """Nothing is published that it should have, so it is complete if every pass is."""

    def __init__(self, records: Sequence[Record], rule: Rule) -> None:
        found = credits(records, rule)
        prompts = prompts_of(
            found.items, stratum=lambda item: item.group, otherwise=lambda item: item.id
        )
        self.strata = prompts.strata
        self._groups = sorted({item.group for item in found.items})
        numbers = {group: number for number, group in enumerate(self._groups)}
        group = np.array([numbers[item.group] for item in found.items], dtype=int)
        self._sums = GroupSums(found.credit, prompts.of_item, group, len(self._groups))
        self._items = np.bincount(group, minlength=len(self._groups))
        whole = np.bincount(group[found.judged_throughout], minlength=len(self._groups))
        self._complete = whole == self._items
        self._scored = _sources_and_types(self._groups)

    def values(self, weights: Float[np.ndarray, " prompts"]) -> dict[str, float]:
        right, total = self._sums(weights)

        def accuracy(numbers: Sequence[int]) -> float:
            passes = ratio(right[:, numbers].sum(1), total[:, numbers].sum(1))
            return float(mean_of_present(passes, 0))

        return {"overall": accuracy(range(len(self._groups)))} | {
            f"groups.{name}": accuracy(numbers) for name, numbers in self._scored.items()
        }

    def support(self) -> dict[str, tuple[int, bool]]:
        count = int(self._items.sum())
        support = {"overall": (count, count > 0 and bool(self._complete.all()))}
        for name, numbers in self._scored.items():
            complete = bool(self._complete[numbers].all())
            support[f"groups.{name}"] = (int(self._items[numbers].sum()), complete)
        return support

    def details(self) -> dict[str, Any]:
        return {}


def make_table(records: Sequence[Record], rule: Rule = "published") -> PreferencesTable:
    return PreferencesTable(records, rule)
