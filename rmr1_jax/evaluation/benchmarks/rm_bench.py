"""RM-Bench: each answer in three styles, so that style and substance pull apart (Liu et al. 2025).

Styles are 0 concise, 1 detailed, 2 detailed with markdown. A cell is (style of the chosen response,
style of the rejected one); above the diagonal the rejected response is the better looking one.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

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
from rmr1_jax.evaluation.benchmark_rows import Fields, pair, read_rows, text
from rmr1_jax.evaluation.record import Item, Record, Rule
from rmr1_jax.judging import Preference, RecordError

NAME = "rm_bench"
# Prompts of each domain, as scored: safety-refuse and safety-response are one. There are 1,327.
DOMAINS = {"chat": 129, "math": 529, "code": 228, "safety": 441}
STYLES = 3
Styles = tuple[int, int]
_FIELDS = ("id", "prompt", "chosen", "rejected", "domain")
# process_final_result.py opens the third file's results in place of the second's. As published,
# the cells of file 2 hold what file 3 says of the same chosen style.
_INSTEAD = {(0, 1): (0, 2), (1, 2): (1, 0), (2, 0): (2, 1)}
_CELLS = [(row, column) for row in range(STYLES) for column in range(STYLES)]
WAYS: Mapping[str, Mapping[Styles, Styles]] = {
    "as_published": {cell: _INSTEAD.get(cell, cell) for cell in _CELLS},
    "corrected": {cell: cell for cell in _CELLS},
}
LEVELS = {  # what is easy or hard is to look past the style
    "hard": [(row, column) for row, column in _CELLS if row < column],
    "normal": [(row, column) for row, column in _CELLS if row == column],
    "easy": [(row, column) for row, column in _CELLS if row > column],
}


def load(source: str, rejects: Rejects) -> Loaded:
    """Nine pairs a prompt, in the order in which RM-R1 judged them.

    That is three files, each of them pairing after pairing: file f pairs chosen style k with
    rejected style (k + f) mod 3. The published `total_dataset.json` is all that is read.

    Raises UserError for a source that is not RM-Bench.
    """
    found = read_rows(
        "RM-Bench",
        source,
        rejects,
        layouts=[_FIELDS],
        hub=[("THU-KEG/RM-Bench", "train")],
        pick=_unrotated,
    )
    prompts: list[tuple[int, str, str, list[Preference]]] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(found.rows):
        record = row.fields
        if record is None:
            continue
        try:
            id, domain = text(record, "id"), text(record, "domain")
            if pooled(domain) not in DOMAINS:
                raise UserError(f"{row.place}, record {row.number}: {_unknown_domain(domain)}")
            if id in seen:
                raise RecordError("id", f"{id!r}: was given to record {seen[id]}; make ids unique")
            prompts.append((number, id, domain, _pairs(id, record)))
        except RecordError as error:
            found.reject(row, str(error))
            continue
        seen[id] = row.number
    rows = len(found.rows)
    items = [
        Item(
            benchmark=NAME,
            id=id,
            index=index_of(file, style, number, rows),
            group=domain,
            cell=(style, other),
            pair=pairs[STYLES * style + other],
            draw=index_of(0, style, number, rows),  # each file was a process of its own
        )
        for file in range(STYLES)
        for style in range(STYLES)
        for other in [cell_of(file, style)[1]]
        for number, id, domain, pairs in prompts
    ]
    counts = {name: sum(pooled(each[2]) == name for each in prompts) for name in DOMAINS}
    missing = [
        f"domain {name}: {counts[name]} of {whole} prompts"
        for name, whole in DOMAINS.items()
        if counts[name] < whole
    ]
    return Loaded(items, missing)


def cell_of(file: int, style: int) -> Styles:
    """Which cell the published file (from 0) judges at this pairing: its rejected ones rotate."""
    return (style, (style + file) % STYLES)


def index_of(file: int, style: int, row: int, rows: int) -> int:
    """The place of a judgement in RM-R1's run over all three files."""
    return (file * STYLES + style) * rows + row


def pooled(domain: str) -> str:
    """The domain that a published one is scored as."""
    return "safety" if domain.startswith("safety") else domain


def _unrotated(files: list[str]) -> list[str]:
    """Of a directory, the file that the others were rotated from. Raises UserError without it."""
    for name in ("total_dataset.json", "total_dataset_1.json"):
        picked = [file for file in files if file.rpartition("/")[2] == name]
        if picked:
            return picked[:1]
    for file in files:
        if re.match(r"total_dataset_[23]", file.rpartition("/")[2]):
            raise UserError(f"{file}: has its rejected answers rotated; give total_dataset.json")
    return files


def _pairs(id: str, record: Fields) -> list[Preference]:
    """Row by row of the matrix. Raises RecordError."""
    for field in ("chosen", "rejected"):
        styles = record.get(field)
        if not isinstance(styles, list) or len(styles) != STYLES:
            raise RecordError(field, f"must be a list of {STYLES} texts, one a style")
    return [
        pair(
            id,
            text(record, "prompt"),
            record["chosen"][row],
            record["rejected"][column],
            names=("prompt", f"chosen[{row}]", f"rejected[{column}]"),
        )
        for row, column in _CELLS
    ]


def _unknown_domain(name: str) -> str:
    return f"domain: {name!r} is none of RM-Bench's; they are {', '.join(DOMAINS)} (safety-...)"


class RMBenchTable:
    """Judgements of RM-Bench, by id and cell. What is absent is left out of the means."""

    def __init__(self, records: Sequence[Record], rule: Rule) -> None:
        for record in records:
            if pooled(record.group) not in DOMAINS:
                raise UserError(f"{NAME}, record {record.id}: {_unknown_domain(record.group)}")
            if record.cell not in _CELLS:
                raise UserError(
                    f"{NAME}, record {record.id}: cell: is {record.cell}; it must be the styles of "
                    "the chosen and the rejected response, 0 to 2 each"
                )
        found = credits(records, rule, identity=lambda record: (record.id, record.cell))
        prompts = prompts_of(
            found.items, stratum=lambda item: pooled(item.group), otherwise=lambda item: item.id
        )
        self.strata = prompts.strata
        bins = [(domain, cell) for domain in DOMAINS for cell in _CELLS]
        numbers = {each: number for number, each in enumerate(bins)}
        bin_of = [numbers[pooled(each.group), cast(Styles, each.cell)] for each in found.items]
        group = np.array(bin_of, dtype=int)
        self._sums = GroupSums(found.credit, prompts.of_item, group, len(bins))
        self._judged = dict(
            zip(bins, np.bincount(group[found.judged], minlength=len(bins)).tolist(), strict=True)
        )
        throughout = np.bincount(group[found.judged_throughout], minlength=len(bins))
        self._complete = {
            (domain, cell): count == DOMAINS[domain]
            for (domain, cell), count in zip(bins, throughout.tolist(), strict=True)
        }

    def values(self, weights: Float[np.ndarray, " prompts"]) -> dict[str, float]:
        values: dict[str, float] = {}
        for way, matrix in self._matrices(weights).items():
            levels = np.stack([mean_of_present(matrix[..., _mask(c)], -1) for c in LEVELS.values()])
            domains = mean_of_present(levels, 0)  # [passes, domains]
            for domain, value in zip(DOMAINS, mean_of_present(domains, 0).tolist(), strict=True):
                values[f"{way}.{domain}"] = value
            for level, each in zip(LEVELS, levels, strict=True):
                values[f"{way}.{level}"] = float(mean_of_present(mean_of_present(each, -1), 0))
            values[f"{way}.total"] = float(mean_of_present(mean_of_present(domains, -1), 0))
        return values

    def support(self) -> dict[str, tuple[int, bool]]:
        support: dict[str, tuple[int, bool]] = {}
        for way, source in WAYS.items():
            for domain in DOMAINS:
                support[f"{way}.{domain}"] = self._support((domain,), source.values())
            for level, cells in LEVELS.items():
                support[f"{way}.{level}"] = self._support(DOMAINS, [source[c] for c in cells])
            support[f"{way}.total"] = self._support(DOMAINS, source.values())
        return support

    def details(self) -> dict[str, Any]:
        """The matrices, over all domains and of each, null where nothing was judged."""
        matrices = {
            way: mean_of_present(matrix, 0)
            for way, matrix in self._matrices(np.ones(len(self.strata))).items()
        }
        shown = {way: _shown(mean_of_present(matrix, 0)) for way, matrix in matrices.items()}
        domains = {
            domain: {way: _shown(matrix[number]) for way, matrix in matrices.items()}
            for number, domain in enumerate(DOMAINS)
        }
        return {"matrix": shown | {"domains": domains}}

    def _matrices(
        self, weights: Float[np.ndarray, " prompts"]
    ) -> dict[str, Float[np.ndarray, "passes domains 3 3"]]:
        cells = ratio(*self._sums(weights)).reshape(-1, len(DOMAINS), STYLES, STYLES)
        return {
            way: cells[..., *np.transpose([*source.values()])].reshape(cells.shape)
            for way, source in WAYS.items()
        }

    def _support(self, domains: Any, cells: Any) -> tuple[int, bool]:
        """Each judgement counts once, also where it stands in two cells."""
        parts = {(domain, cell) for domain in domains for cell in cells}
        return sum(self._judged[part] for part in parts), all(self._complete[p] for p in parts)


def _mask(cells: list[Styles]) -> Any:
    mask = np.zeros((STYLES, STYLES), dtype=bool)
    mask[tuple(np.transpose(cells))] = True
    return mask


def _shown(matrix: Float[np.ndarray, "3 3"]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else value for value in row] for row in matrix.tolist()]


def make_table(records: Sequence[Record], rule: Rule = "published") -> RMBenchTable:
    """Raises UserError for a record of no known domain or cell."""
    return RMBenchTable(records, rule)
