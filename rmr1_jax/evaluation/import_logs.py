"""RM-R1's published logs as records and items, so that its runs can be scored and compared.

Known are, by their fields: RewardBench's logs.json, RM-Bench's total_dataset_{1,2,3}_MODEL.json,
and RMB's logs.json (pairs) and raw_logs.json (Best-of-N).
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmark_rows import clean, text
from rmr1_jax.evaluation.benchmarks import rewardbench, rm_bench, rmb
from rmr1_jax.evaluation.record import Item, Record, grade
from rmr1_jax.judging import Message, Preference, RecordError, Role, Side, answer

# Scores, and raw_logs.json once more, grouped by query: nothing that is not elsewhere.
_NO_LOGS = (
    "each_small_section_score.json",
    "final_result.json",
    "Final_score.json",
    "final_score.json",
    "group_by_same_id_logs.json",
    "main_score.json",
    "META_RESULT.json",
)
_SHUFFLED = "Is_Chosen_Answer_Shuffled_toPositionB"
_ROLES: dict[object, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_Fields = Mapping[str, Any]


class Imported(NamedTuple):
    """Records and items by benchmark, in data set order, and what could not be imported."""

    records: dict[str, list[Record]]
    items: dict[str, list[Item]]
    problems: list[str]


@dataclass(frozen=True)
class _Judged:
    where: str
    place: tuple[Any, ...]
    item: Item
    position: Side
    trace: str
    result: object

    def record(self, item: Item, problems: list[str]) -> Record:
        """The verdict is read from the trace; a result that says otherwise is a problem."""
        found = answer(self.trace, "evaluation")
        correct = grade(found.verdict, self.position)
        agrees = self.result == correct or (found.verdict is None and self.result == 0.5)
        if self.result is not None and not agrees:
            problems.append(
                f"{self.where}: result is {self.result}, but the trace says "
                f"{found.verdict or found.problem} where the chosen response is {self.position}, "
                f"which scores {correct:g}; the trace is believed"
            )
        return Record(
            benchmark=item.benchmark,
            id=item.id,
            index=item.index,
            group=item.group,
            cell=item.cell,
            chosen_position=self.position,
            verdict=found.verdict,
            problem=found.problem,
            correct=correct,
            trace=self.trace,
            prompt=item.prompt,
        )


def import_logs(path: Path) -> Imported:
    """Every judgement of one run's logs, below a directory or in one file.

    A file or record that cannot be used is a line of `problems`, and the rest is imported.
    Raises UserError where there is no such path.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file or directory")
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    judged: dict[str, dict[tuple[Any, ...], _Judged]] = {}
    problems: list[str] = []
    for file in files:
        if file.name in _NO_LOGS:
            continue
        for each in _judgements(file, problems):
            earlier = judged.setdefault(each.item.benchmark, {}).setdefault(each.place, each)
            if earlier is not each:
                problems.append(
                    f"{each.where}: is the same pair as {earlier.where}, and left out; "
                    "import one run at a time"
                )
    if not judged:
        problems.append(f"{path}: holds no log of RM-R1 that can be imported")
    imported = Imported({}, {}, problems)
    for name, places in judged.items():
        ordered = [places[place] for place in sorted(places)]
        items = [each.item for each in ordered]
        if name == rmb.NAME:
            items = rmb.numbered({rmb.Place(*each.place): each.item for each in ordered})
        imported.items[name] = items
        imported.records[name] = [
            each.record(item, problems) for each, item in zip(ordered, items, strict=True)
        ]
    return imported


@dataclass
class _File:
    path: Path
    rows: int
    rotation: int
    """Of RM-Bench's rejected responses."""
    losers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many of a Best-of-N query have been read."""

    def where(self, row: int) -> str:
        return f"{self.path}, record {row + 1}"


_Reader = Callable[[_File, int, _Fields], list[_Judged]]


def _judgements(path: Path, problems: list[str]) -> Iterator[_Judged]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path}: cannot be read ({error})")
        return
    first = rows[0] if isinstance(rows, list) and rows else None
    fields = first.keys() if isinstance(first, Mapping) else set()
    read = next((read for needed, read in _LAYOUTS if needed <= fields), None)
    if read is None:
        problems.append(f"{path}: is no known log; its fields are {', '.join(fields) or 'none'}")
        return
    number = re.match(r"total_dataset_([123])_", path.name)
    if read is _rm_bench and number is None:
        problems.append(
            f"{path}: which third of RM-Bench it is, its name must say: total_dataset_1_MODEL.json"
        )
        return
    file = _File(path, len(rows), int(number[1]) - 1 if number else 0)
    for row, record in enumerate(rows):
        try:
            if not isinstance(record, Mapping):
                raise RecordError("record", "is no object with named fields")
            yield from read(file, row, record)
        except RecordError as error:
            problems.append(f"{file.where(row)}: {error}")


def _rewardbench(file: _File, row: int, record: _Fields) -> list[_Judged]:
    subset, id = text(record, "subset"), text(record, "id")
    if subset not in rewardbench.SUBSETS:
        raise RecordError("subset", f"{subset!r} is none of RewardBench's")
    item = Item(rewardbench.NAME, id, row, subset, None, _conversations(record, id), row)
    return [_judged(file, row, record, (row,), item)]


def _rmb(file: _File, row: int, record: _Fields) -> list[_Judged]:
    group = text(record, "category_path")
    loser = None
    if rmb.is_best_of_n(group):
        uid = text(record, "bon_uid")
        loser = file.losers[group, uid]  # in the order of the query's list
        file.losers[group, uid] += 1
    else:
        uid = text(record, "pair_uid")
    item = rmb.item_of(group, uid, loser, _conversations(record, uid))
    return [_judged(file, row, record, rmb.place_of(group, uid, loser or 0), item)]


def _rm_bench(file: _File, row: int, record: _Fields) -> list[_Judged]:
    """Chosen and rejected of a file are paired as they stand: the rejected ones are rotated."""
    id, domain = text(record, "id"), text(record, "domain")
    if rm_bench.pooled(domain) not in rm_bench.DOMAINS:
        raise RecordError("domain", f"{domain!r} is none of RM-Bench's")
    parts: dict[str, Any] = {
        name: record.get(name) for name in ("chosen", "rejected", "output", _SHUFFLED)
    }
    parts["result"] = record.get("result", [None] * rm_bench.STYLES)
    for name, part in parts.items():
        if not isinstance(part, list) or len(part) != rm_bench.STYLES:
            raise RecordError(name, f"must be a list of {rm_bench.STYLES}")
    prompt = Message("user", text(record, "prompt"))
    judged = []
    for style in range(rm_bench.STYLES):
        part = {name: part[style] for name, part in parts.items()}
        preference = Preference(
            id, (prompt,), _string(part, "chosen"), _string(part, "rejected"), "A"
        )
        item = Item(
            rm_bench.NAME,
            id,
            rm_bench.index_of(file.rotation, style, row, file.rows),
            domain,
            rm_bench.cell_of(file.rotation, style),
            preference,
            rm_bench.index_of(0, style, row, file.rows),
        )
        fields = {"answers": part["output"], "results": part["result"], _SHUFFLED: part[_SHUFFLED]}
        judged.append(_judged(file, row, fields, (item.index, id, file.rotation), item))
    return judged


# The fields that a log is known by.
_LAYOUTS: tuple[tuple[set[str], _Reader], ...] = (
    ({"pair_uid", "answers"}, _rmb),
    ({"bon_uid", "answers"}, _rmb),
    ({"subset", "answers"}, _rewardbench),
    ({"output", "domain"}, _rm_bench),
)


def _judged(file: _File, row: int, record: _Fields, place: tuple[Any, ...], item: Item) -> _Judged:
    shuffled = record.get(_SHUFFLED)
    if not isinstance(shuffled, bool):
        raise RecordError(_SHUFFLED, f"is {shuffled!r}; it must be true or false")
    trace = _string(record, "answers")
    position: Side = "B" if shuffled else "A"
    return _Judged(file.where(row), place, item, position, trace, record.get("results"))


def _conversations(record: _Fields, id: str) -> Preference:
    context, chosen = _conversation(record, "text_chosen")
    context_b, rejected = _conversation(record, "text_rejected")
    return Preference(
        id, context, chosen, rejected, "A", None if context == context_b else context_b
    )


def _conversation(record: _Fields, name: str) -> tuple[tuple[Message, ...], str]:
    """(context, response). An empty response was judged as it is, and stays."""
    messages = record.get(name)
    if not isinstance(messages, list) or len(messages) < 2:
        raise RecordError(name, "must be a list of messages, the response last")
    found = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise RecordError(f"{name}[{number}]", 'must be {"role", "content"}')
        found.append(Message(_ROLES[message["role"]], _string(message, "content")))
    return tuple(found[:-1]), found[-1].content


def _string(record: _Fields, name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise RecordError(name, f"is {json.dumps(value)[:40]}; it must be a text")
    return clean(value)
