"""RMB: 49 scenarios of helpfulness and harmlessness, as pairs and as Best-of-N (Zhou et al. 2024).

A Best-of-N query has one best response and several losers. Each loser is a pair of its own, and the
query counts as right only if every one of them is.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

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
from rmr1_jax.evaluation.benchmark_rows import Fields, Row, Source, pair, read_rows, text
from rmr1_jax.evaluation.record import Item, Record, Rule
from rmr1_jax.judging import Preference, RecordError

SCENARIOS = {
    "Helpfulness": (
        "Brainstorming/Idea Development",
        "Brainstorming/Problem Solving",
        "Chat/Casual Conversation",
        "Chat/Discussion",
        "Chat/Supportive Conversation",
        "Classification/Content Categorization",
        "Classification/Quality and Compliance Assessment",
        "Closed QA/ContextBased",
        "Closed QA/OptionBased",
        "Code/Data Management",
        "Code/Development and Implementation",
        "Code/Documentation",
        "Code/Quality and Optimization",
        "Generation/Creative Writing",
        "Generation/Professional Content Generation",
        "Open QA/Factual",
        "Open QA/General Explanation",
        "Open QA/Hypothetical Scenarios",
        "Open QA/Interpretative Analysis",
        "Open QA/Personal Opinion and Advice",
        "Open QA/Technical and Practical Support",
        "Reasoning/Analytical Reasoning",
        "Reasoning/Critical Thinking",
        "Reasoning/Human Decision Making",
        "Reasoning/Logical Deduction",
        "Reasoning/Pattern Recognition",
        "Rewrite/Paraphrasing",
        "Rewrite/PostQuality Assessment Rewriting",
        "Rewrite/Textual ExpansionReduction",
        "Rewrite/Tone Adjustment",
        "Role Playing/General Character",
        "Role Playing/Specific Character",
        "Summarization/Specialized Summaries",
        "Summarization/Standard Summaries",
        "Translation/GeneralExcerpt Language Translation",
        "Translation/Literary and Cultural Translation",
        "Translation/Technical and Scientific Translation",
    ),
    "Harmlessness": (*(f"S{number}" for number in range(1, 12)), "multi"),
}


NAME = "rmb"
# Published as files in the repository Zhou-Zoey/RMB-Reward-Model-Benchmark; these are copies of it,
# flattened.
HUB = [("ilgee/RMB-Pairwise", "test"), ("ilgee/RMB-BoN", "test")]


class Section(NamedTuple):
    path: str
    pairs: int
    """Judgements that the published section has."""
    queries: int
    """What its accuracy is over: these pairs, or the queries that they belong to."""


SECTIONS = {
    "pairwise_helpfulness": Section("Pairwise_set/Helpfulness", 10067, 10067),
    "pairwise_harmlessness": Section("Pairwise_set/Harmlessness", 7064, 7064),
    "bon_helpfulness": Section("BoN_set/Helpfulness", 4895, 2109),
    "bon_harmlessness": Section("BoN_set/Harmlessness", 3819, 1677),
}
_PARTS = {section.path: number for number, section in enumerate(SECTIONS.values())}
_PAIRWISE = ("pair_uid", "conversation_input", "chosen", "reject", "category_path")
_BEST_OF_N = ("bon_uid", "conversation_input", "bon_best", "loser_list", "category_path")
_FLAT = ("conversation", "chosen", "rejected", "category_path")


class Place(NamedTuple):
    """Where a pair stands. RM-R1 took files in whatever order a file system listed them, so its
    own order cannot be known; ours is by scenario and then uid."""

    part: int
    group: str
    number: tuple[bool, int, str]
    """Of the uid: as a number where it is one."""
    loser: int


def load(source: str, rejects: Rejects) -> Loaded:
    """The pairs below a folder, sections one after the other, each by scenario and uid.

    `category_path` in the records decides what a pair belongs to, not where its file lies. A query
    with a loser that cannot be used is left out as a whole: without it, it would be too easy.

    Raises UserError for a source that is not RMB.
    """
    layouts = [_PAIRWISE, _BEST_OF_N, ("pair_uid", *_FLAT), ("bon_uid", *_FLAT)]
    found = read_rows("RMB", source, rejects, layouts=layouts, hub=HUB)
    placed: dict[Place, Item | None] = {}
    seen: dict[tuple[str, str], Row] = {}
    for row in found.rows:
        if row.fields is not None:
            placed.update(_row(row, _as_published(row.fields), found, seen))
    return Loaded(numbered(placed), _missing(placed))


def place_of(group: str, uid: str, loser: int) -> Place:
    """Raises RecordError where the path is none of RMB's."""
    part = _PARTS.get(section_of(group))
    if part is None:
        raise RecordError(
            "category_path", f"is {group!r}; it must begin with one of {', '.join(_PARTS)}"
        )
    is_number = uid.isascii() and uid.isdigit() and len(uid) < 19
    return Place(part, group, (not is_number, int(uid) if is_number else 0, uid), loser)


def section_of(group: str) -> str:
    """The first two parts of a scenario's path."""
    return "/".join(group.split("/")[:2])


def is_best_of_n(group: str) -> bool:
    return group.startswith("BoN_set/")


def numbered(placed: dict[Place, Item | None]) -> list[Item]:
    """The items in order, with their numbers; one that cannot be used keeps its numbers."""
    items: list[Item] = []
    draws: Counter[int] = Counter()
    for index, place in enumerate(sorted(placed)):
        item = placed[place]
        if item is not None:
            items.append(replace(item, index=index, draw=draws[place.part]))
        draws[place.part] += 1
    return items


def item_of(group: str, uid: str, loser: int | None, preference: Preference) -> Item:
    """An item whose numbers are still to come."""
    cell = None if loser is None else (uid, loser)
    return Item(benchmark=NAME, id=uid, index=0, group=group, cell=cell, pair=preference, draw=0)


def _as_published(record: Fields) -> Fields:
    """A flattened record, under the names of the published files; any other as it is."""
    if "conversation" not in record:
        return record
    names = {"conversation": "conversation_input", "chosen": "chosen", "rejected": "reject"}
    if is_best_of_n(str(record.get("category_path"))):
        names |= {"chosen": "bon_best", "rejected": "loser_list"}
    rest = {name: value for name, value in record.items() if name not in names}
    return rest | {ours: record.get(theirs) for theirs, ours in names.items()}


def _row(
    row: Row, record: Fields, found: Source, seen: dict[tuple[str, str], Row]
) -> dict[Place, Item | None]:
    """The items of a record; None where they cannot be used."""
    placed: dict[Place, Item | None] = {}
    try:
        group = text(record, "category_path")
        best_of_n = is_best_of_n(group)
        field = "bon_uid" if best_of_n else "pair_uid"
        uid = text(record, field)
        first = place_of(group, uid, 0)
        key = (section_of(group), uid)
        if key in seen:
            earlier = seen[key]
            raise RecordError(
                field,
                f"{uid!r}: was given to record {earlier.number} of {earlier.place}; "
                "make ids unique",
            )
        seen[key] = row
        losers = record.get("loser_list") if best_of_n else [record.get("reject")]
        if not isinstance(losers, list) or not losers:
            raise RecordError("loser_list", "must be a list of the responses that lost")
        placed = {first._replace(loser=loser): None for loser in range(len(losers))}
        winner = "bon_best" if best_of_n else "chosen"
        items = []
        for loser, lost in enumerate(losers):
            preference = pair(
                uid,
                record.get("conversation_input"),
                _answer(record.get(winner)),
                _answer(lost),
                names=(
                    "conversation_input",
                    f"{winner}.answer",
                    f"loser_list[{loser}].answer" if best_of_n else "reject.answer",
                ),
            )
            items.append(item_of(group, uid, loser if best_of_n else None, preference))
    except RecordError as error:
        found.reject(row, str(error))
        return placed
    return dict(zip(placed, items, strict=True))


def _answer(response: object) -> object:
    return response.get("answer") if isinstance(response, dict) else response


def _missing(placed: dict[Place, Item | None]) -> list[str]:
    present = [place for place, item in placed.items() if item is not None]
    groups = {place.group for place in present}
    missing = []
    for part, section in enumerate(SECTIONS.values()):
        mine = [place for place in present if place.part == part]
        queries = len({(place.group, place.number) for place in mine})
        if len(mine) >= section.pairs and queries >= section.queries:
            continue
        line = f"{section.path}: {queries:,} of {section.queries:,}"
        if is_best_of_n(section.path):
            line += f" queries ({len(mine):,} of {section.pairs:,} pairs)"
        else:
            line += " pairs"
        kind = section.path.partition("/")[2]
        absent = [name for name in SCENARIOS[kind] if f"{section.path}/{name}" not in groups]
        if mine and absent:
            line += f"; nothing of {', '.join(absent)}"
        missing.append(line)
    return missing


class RMBTable:
    """Judgements of RMB. A query counts as right in a pass if all that was judged of it is."""

    def __init__(self, records: Sequence[Record], rule: Rule) -> None:
        for record in records:
            if section_of(record.group) not in _PARTS:
                raise UserError(
                    f"{NAME}, record {record.id}: group: is {record.group!r}; it must begin with "
                    f"one of {', '.join(_PARTS)}"
                )
            if is_best_of_n(record.group) and record.cell is None:
                raise UserError(
                    f"{NAME}, record {record.id}: cell: is missing; "
                    "it must be the id of the query, and which of its losers this is"
                )
        found = credits(records, rule, identity=lambda item: (item.group, item.id, item.cell))
        queries: dict[tuple[object, ...], int] = {}
        of_query = np.array(
            [queries.setdefault(_query(item), len(queries)) for item in found.items], dtype=int
        )
        first = [found.items[position] for position in _first(of_query, len(queries))]
        prompts = prompts_of(first, stratum=lambda item: item.group, otherwise=_query)
        self.strata = prompts.strata
        best_of_n = np.array([is_best_of_n(item.group) for item in found.items], dtype=bool)
        worth = np.where(best_of_n, found.credit == 1, found.credit)  # half right is not right
        worth[np.isnan(found.credit)] = np.inf
        credit = np.full((len(worth), len(queries)), np.inf)
        for of_pass, each in zip(credit, worth, strict=True):
            np.minimum.at(of_pass, of_query, each)
        credit[np.isinf(credit)] = np.nan  # nothing of the query was judged in that pass
        self._groups = sorted({item.group for item in first})
        numbers = {group: number for number, group in enumerate(self._groups)}
        group = np.array([numbers[item.group] for item in first], dtype=int)
        self._sums = GroupSums(credit, prompts.of_item, group, len(self._groups))
        part = np.array([_PARTS[section_of(name)] for name in self._groups], dtype=int)
        self._in_section = part[:, None] == np.arange(len(SECTIONS))
        self._judged = np.bincount(group[~np.isnan(credit).all(0)], minlength=len(self._groups))
        pairs = np.bincount(
            part[group[of_query]], found.judged_throughout.astype(float), len(SECTIONS)
        )
        whole = np.bincount(part[group], ~np.isnan(credit).any(0), len(SECTIONS))
        self._complete = [
            pairs[number] == section.pairs and whole[number] == section.queries
            for number, section in enumerate(SECTIONS.values())
        ]

    def values(self, weights: Float[np.ndarray, " prompts"]) -> dict[str, float]:
        right, total = self._sums(weights)
        sections = ratio(right @ self._in_section, total @ self._in_section)  # [passes, sections]
        values = dict(zip(SECTIONS, mean_of_present(sections, 0).tolist(), strict=True))
        values["overall"] = float(mean_of_present(mean_of_present(sections, 1), 0))
        scenarios = mean_of_present(ratio(right, total), 0).tolist()
        return values | {
            f"scenarios.{group}": value
            for group, value in zip(self._groups, scenarios, strict=True)
        }

    def support(self) -> dict[str, tuple[int, bool]]:
        """How many scenarios' pairs were published is not known: they are as complete as their
        section."""
        counts = (self._judged @ self._in_section).tolist()
        support = {
            name: (int(count), bool(complete))
            for name, count, complete in zip(SECTIONS, counts, self._complete, strict=True)
        }
        support["overall"] = (int(sum(counts)), all(self._complete))
        for number, group in enumerate(self._groups):
            complete = self._complete[_PARTS[section_of(group)]]
            support[f"scenarios.{group}"] = (int(self._judged[number]), bool(complete))
        return support

    def details(self) -> dict[str, Any]:
        return {}


def _query(item: Record) -> tuple[object, ...]:
    """What is right or wrong as a whole: a pair, or all pairs of a Best-of-N query."""
    if is_best_of_n(item.group):
        return (item.group, (item.cell or (item.id,))[0])
    return (item.group, item.id)


def _first(of_query: Iterable[int], queries: int) -> list[int]:
    """Where each query occurs first."""
    first: dict[int, int] = {}
    for position, query in enumerate(of_query):
        first.setdefault(int(query), position)
    return [first[query] for query in range(queries)]


def make_table(records: Sequence[Record], rule: Rule = "published") -> RMBTable:
    """Raises UserError for a record of no known section, or a Best-of-N one without its cell."""
    return RMBTable(records, rule)
