"""RewardBench: 23 subsets in four sections (Lambert et al. 2024; allenai/reward-bench).

Weights and sections are those of rewardbench 0.1.4 (constants.py and calculate_scores_per_section),
which RM-R1's evaluation uses.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from rmr1_jax.data.preference_file import Rejects
from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmark import (
    GroupSums,
    Loaded,
    credits,
    mean_of_present,
    prompts_of,
    ratio,
)
from rmr1_jax.evaluation.benchmark_rows import pair, read_rows, text
from rmr1_jax.evaluation.record import Item, Record, Rule
from rmr1_jax.judging import RecordError

NAME = "rewardbench"
# Rows of each subset, by section. There are 2,985.
SECTIONS = {
    "chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "chat_hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "reasoning": {
        "math-prm": 447,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
SUBSETS = {subset: rows for section in SECTIONS.values() for subset, rows in section.items()}
# In a section a subset weighs as much as it has rows, but math as much as all of the code.
WEIGHTS = SUBSETS | {"math-prm": 984}
_FIELDS = ("prompt", "chosen", "rejected", "subset")


def load(source: str, rejects: Rejects) -> Loaded:
    """The rows of a file, of a directory, or of the hub; each keeps its place as its index.

    Ids repeat (3692 is there twice upstream), so only a row that is the same in everything is a
    duplicate. A row without `id` is called by `idx`, or by its number.

    Raises UserError for a source that is not RewardBench.
    """
    found = read_rows(
        "RewardBench",
        source,
        rejects,
        layouts=[_FIELDS],
        hub=[("allenai/reward-bench", "filtered")],
    )
    items: list[Item] = []
    seen: dict[tuple[str, ...], int] = {}
    for index, row in enumerate(found.rows):
        record = row.fields
        if record is None:
            continue
        try:
            subset = text(record, "subset")
            if subset not in SUBSETS:
                raise UserError(f"{row.place}, record {row.number}: {unknown_subset(subset)}")
            name = next((field for field in ("id", "idx") if field in record), None)
            id = str(row.number) if name is None else text(record, name)
            item = Item(
                benchmark=NAME,
                id=id,
                index=index,
                group=subset,
                cell=None,
                pair=pair(
                    id,
                    record.get("prompt"),
                    record.get("chosen"),
                    record.get("rejected"),
                    names=_FIELDS,
                ),
                draw=index,
            )
            same = (id, subset, item.prompt, item.pair.response_a, item.pair.response_b)
            if same in seen:
                raise RecordError("id", f"{id!r}: is the same row as record {seen[same]}")
        except RecordError as error:
            found.reject(row, str(error))
            continue
        seen[same] = row.number
        items.append(item)
    counts = {subset: sum(item.group == subset for item in items) for subset in SUBSETS}
    missing = [
        f"subset {subset}: {counts[subset]} of {rows}"
        for subset, rows in SUBSETS.items()
        if counts[subset] < rows
    ]
    return Loaded(items, missing)


def unknown_subset(name: str) -> str:
    return f"subset: {name!r} is none of RewardBench's; they are {', '.join(SUBSETS)}"


class RewardBenchTable:
    """Judgements of RewardBench. A section with subsets absent is that of the others."""

    def __init__(self, records: Sequence[Record], rule: Rule) -> None:
        for record in records:
            if record.group not in SUBSETS:
                raise UserError(f"{NAME}, record {record.id}: {unknown_subset(record.group)}")
        found = credits(records, rule)
        prompts = prompts_of(
            found.items, stratum=lambda item: item.group, otherwise=lambda item: item.index
        )
        self.strata = prompts.strata
        numbers = {subset: number for number, subset in enumerate(SUBSETS)}
        subset = np.array([numbers[item.group] for item in found.items], dtype=int)
        self._sums = GroupSums(found.credit, prompts.of_item, subset, len(SUBSETS))
        self._judged = np.bincount(subset[found.judged], minlength=len(SUBSETS))
        self._complete = np.bincount(subset[found.judged_throughout], minlength=len(SUBSETS)) == [
            *SUBSETS.values()
        ]
        self._weights = np.array([*WEIGHTS.values()], dtype=float)
        section = np.repeat(range(len(SECTIONS)), [len(each) for each in SECTIONS.values()])
        self._in_section = section[:, None] == np.arange(len(SECTIONS))

    def values(self, weights: Float[np.ndarray, " prompts"]) -> dict[str, float]:
        right, total = self._sums(weights)
        accuracy = ratio(right, total)  # [passes, subsets]
        weight = np.where(np.isnan(accuracy), 0.0, self._weights)
        weighted = weight * np.nan_to_num(accuracy)
        sections = ratio(weighted @ self._in_section, weight @ self._in_section)
        values = dict(zip(SECTIONS, mean_of_present(sections, 0).tolist(), strict=True))
        values["overall"] = float(mean_of_present(mean_of_present(sections, 1), 0))
        values["micro"] = float(mean_of_present(ratio(right.sum(1), total.sum(1)), 0))
        subsets = mean_of_present(accuracy, 0).tolist()
        return values | {
            f"subsets.{subset}": value for subset, value in zip(SUBSETS, subsets, strict=True)
        }

    def support(self) -> dict[str, tuple[int, bool]]:
        support: dict[str, tuple[int, bool]] = {}
        for number, section in enumerate(SECTIONS):
            of_section = self._in_section[:, number]
            support[section] = (
                int(self._judged[of_section].sum()),
                bool(self._complete[of_section].all()),
            )
        whole = int(self._judged.sum()), bool(self._complete.all())
        support |= {"overall": whole, "micro": whole}
        for number, subset in enumerate(SUBSETS):
            support[f"subsets.{subset}"] = (
                int(self._judged[number]),
                bool(self._complete[number]),
            )
        return support

    def details(self) -> dict[str, Any]:
        return {}


def make_table(records: Sequence[Record], rule: Rule = "published") -> RewardBenchTable:
    """Raises UserError for a record of no known subset."""
    return RewardBenchTable(records, rule)
