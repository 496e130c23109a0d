"""Any file of labelled preferences as a benchmark: accuracy by where its pairs come from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from rmr1_jax.data.catalogue import Row, open_source
from rmr1_jax.data.example import Example
from rmr1_jax.data.files import decode_row, row_text
from rmr1_jax.data.sources import Rejects
from rmr1_jax.data.store import is_complete
from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmark import (
    GroupSums,
    Loaded,
    credits,
    mean_of_present,
    prompts_of,
    ratio,
)
from rmr1_jax.evaluation.item import Item
from rmr1_jax.evaluation.record import Record, Rule
from rmr1_jax.judging import RecordError

NAME = "preferences"
# The first of these fields that a record has says what group it is of.
GROUPS = ("source", "type", "subset", "category")


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
    if isinstance(record, Mapping):
        for field in GROUPS:
            value = record.get(field)
            if isinstance(value, str) and value.strip():
                return value
    return row.place.rstrip("/").rpartition("/")[2]


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

    def values(self, weights: Float[np.ndarray, " prompts"]) -> dict[str, float]:
        right, total = self._sums(weights)
        groups = mean_of_present(ratio(right, total), 0).tolist()
        overall = float(mean_of_present(ratio(right.sum(1), total.sum(1)), 0))
        return {"overall": overall} | {
            f"groups.{group}": value for group, value in zip(self._groups, groups, strict=True)
        }

    def support(self) -> dict[str, tuple[int, bool]]:
        count = int(self._items.sum())
        support = {"overall": (count, count > 0 and bool(self._complete.all()))}
        for number, group in enumerate(self._groups):
            support[f"groups.{group}"] = (int(self._items[number]), bool(self._complete[number]))
        return support

    def details(self) -> dict[str, Any]:
        return {}


def make_table(records: Sequence[Record], rule: Rule = "published") -> PreferencesTable:
    return PreferencesTable(records, rule)
