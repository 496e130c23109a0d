"""Judgements to read: which of them a page shows, and how it carries them."""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from markupsafe import Markup

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.record import Cell, ItemKey, Record
from rmr1_jax.evaluation.statistics import number
from rmr1_jax.evaluation.votes import outcome
from rmr1_jax.judging.markup import pieces

STYLES = ("concise", "detailed", "detailed with markdown")
OUTCOMES = {"right": "right", "wrong": "wrong", "void": "no verdict"}
# Above this many bytes a page carries its samples packed: about a quarter of the size.
LARGE = 200_000
# JSON may hold these as they are; in the text of an HTML script element they could end it.
_IN_SCRIPT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}

Line = Mapping[str, Any]


class Texts:
    """Texts by number, each once: RM-Bench judges every answer of a prompt three times."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = len(self.all)
            self.all.append(text)
        return self._places[text]


def choose(strata: Sequence[object], count: int, seed: int = 0) -> list[int]:
    """At most `count` positions in order, as evenly as can be over the values at them."""
    members: dict[object, list[int]] = {}
    for position, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(position)
    random = Random(seed)
    for each in members.values():
        random.shuffle(each)
    chosen: list[int] = []
    while len(chosen) < min(count, len(strata)):
        chosen += [each.pop() for each in members.values() if each]
    return sorted(chosen[:count])


def choose_records(records: Sequence[Record], count: int) -> list[Record]:
    """Evenly over groups, and over right, wrong and no verdict: errors are what is worth reading,
    and a good judge has few."""
    strata = [(record.group, outcome(record)) for record in records]
    return [records[position] for position in choose(strata, count)]


def read_items(file: Path, wanted: Iterable[ItemKey]) -> dict[ItemKey, Line]:
    """What these judgements were about, as far as the file has it. Raises UserError."""
    found: dict[ItemKey, Line] = {}
    wanted = set(wanted)
    if not file.exists():
        return found
    with file.open("rb") as lines:
        for place, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                line = json.loads(raw)
                cell = None if line["cell"] is None else tuple(line["cell"])
                key: ItemKey = (line["group"], line["id"], line["index"], cell)
                if key in wanted:
                    _check_texts(line)
                    found[key] = line
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{file}, line {place}: is no item ({type(error).__name__}: {error}); "
                    "move the file away to have a report without questions and answers"
                ) from error
    return found


def _check_texts(line: Line) -> None:
    for message in [*line["conversation"], *line.get("conversation_rejected", ())]:
        _text(message["role"]), _text(message["content"])
    _text(line["chosen"]), _text(line["rejected"])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{json.dumps(value)[:40]} is no text")
    return value


def sample(
    about: Record, item: Line | None, judgements: Sequence[Line], texts: Texts, outcome: str
) -> Line:
    """What a page shows of an item that was judged, by one run or by several."""
    shown: dict[str, Any] = {
        "key": sample_key(about),
        "benchmark": about.benchmark,
        "group": about.group,
        "item": about.id,
        "cell": cell_in_words(about.cell),
        "chosen": about.chosen_position,
        "outcome": outcome,
        "judgements": judgements,
    }
    if item is not None:
        answers = [item["chosen"], item["rejected"]]
        context = item["conversation"]
        contexts = [context, item.get("conversation_rejected") or context]
        if about.chosen_position == "B":
            answers, contexts = answers[::-1], contexts[::-1]
        shown["answers"] = [texts.place(answer) for answer in answers]
        if contexts[0] == contexts[1]:
            contexts = contexts[:1]
        shown["conversations"] = [
            [[message["role"], texts.place(message["content"])] for message in each]
            for each in contexts
        ]
    return shown


def judgement(record: Record, title: str | None = None, *, voted: bool = False) -> Line:
    """What a page shows of one judgement, which may be one of several votes. What says nothing is
    left out."""
    about = {
        "title": title,
        "outcome": OUTCOMES[outcome(record)],
        "verdict": record.verdict,
        "problem": record.problem,
        "forced": record.forced or None,
        "confidence": None if record.confidence is None else number(record.confidence),
        "tokens": record.trace_tokens,
        "prompt_tokens": record.prompt_tokens,
        "vote": record.sample + 1 if voted else None,
        "trace": None if record.trace is None else list(in_pieces(record.trace)),
    }
    return {name: value for name, value in about.items() if value is not None}


def in_pieces(trace: str) -> Iterator[str | list[str]]:
    """Pieces of a trace as the page reads them: a text, [name, mark], [name] opens, [] closes."""
    for kind, text, name in pieces(trace):
        if kind == "text":
            yield text
        else:
            yield {"mark": [name, text], "open": [name], "close": []}[kind]


def sample_key(record: Record) -> str:
    """The address of a sample: the same in every report that shows the judgement."""
    key = json.dumps([record.benchmark, *record.key])
    return f"{record.benchmark}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"


def cell_in_words(cell: Cell | None) -> str | None:
    if cell is None:
        return None
    first, second = cell
    if isinstance(first, str):
        return f"query {first}, loser {second}"
    if not (0 <= first < len(STYLES) and 0 <= second < len(STYLES)):
        return f"{first}, {second}"
    return f"chosen {STYLES[first]}, rejected {STYLES[second]}"


def embedded(data: object) -> Markup:
    """The element that carries data in a page, where no text of them can become markup."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    raw = text.encode("utf-8", "replace")
    if len(raw) > LARGE:
        packed = base64.b64encode(gzip.compress(raw, mtime=0)).decode()
        return Markup(f'<script type="application/json" id="data" data-packed>{packed}</script>')
    plain = raw.decode().translate(_IN_SCRIPT)
    return Markup(f'<script type="application/json" id="data">{plain}</script>')
