"""An item is a pair of a benchmark; a record is what is kept of one judgement of it.

Scores are computed from records alone, so whoever writes these lines can be scored.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from rmr1_jax.errors import UserError
from rmr1_jax.judging import Preference, Problem, Side, answer

# RM-Bench: (style of the chosen response, style of the rejected one).
# RMB Best-of-N: (the query's id, which of its losers).
Cell = tuple[int, int] | tuple[str, int]
ItemKey = tuple[str, str, int, Cell | None]


@dataclass(frozen=True)
class Item:
    """One pair to be judged.

    `pair` has the chosen response as A; `evaluation.runner` says where the judge sees it.
    """

    benchmark: str
    id: str
    index: int
    """Position in the benchmark, from 0, in its own order."""
    group: str
    """Subset, domain or scenario path."""
    cell: Cell | None
    pair: Preference
    draw: int
    """Which number of a fresh stream of random numbers places the pair. RM-Bench draws for each of
    its three files anew, RMB for each of its four parts, since each was a process of its own."""

    @property
    def key(self) -> ItemKey:
        """What no two items of a benchmark share."""
        return (self.group, self.id, self.index, self.cell)

    @property
    def prompt(self) -> str:
        """A fingerprint of the conversation: items that share it are no independent evidence."""
        messages = [(message.role, message.content) for message in self.pair.context]
        return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]


# What a judgement without a verdict is worth: 0 in RM-R1's code, 0.5 in the original RewardBench.
Rule = Literal["published", "rewardbench"]
NO_VERDICT: dict[Rule, float] = {"published": 0.0, "rewardbench": 0.5}

Key = tuple[str, str, int, Cell | None, Side, int]


@dataclass(frozen=True)
class Record:
    """One judgement. Everything after `correct` may be None in the records of others."""

    benchmark: str
    id: str
    index: int
    group: str
    cell: Cell | None
    chosen_position: Side
    verdict: Side | None
    problem: Problem | None
    correct: float
    trace: str | None = None
    prompt_tokens: int | None = None
    trace_tokens: int | None = None
    seconds: float | None = None
    """This judgement's share of the wall time: since the one before it was finished."""
    sample: int = 0
    """Which of the votes."""
    confidence: float | None = None
    """P(A) / (P(A) + P(B)) at the token that is the verdict, at temperature 1."""
    forced: bool = False
    """The trace was cut at the budget, and the verdict asked for once more."""
    prompt: str | None = None
    """`Item.prompt`."""

    @property
    def item(self) -> ItemKey:
        """Which item it is about: `Item.key`."""
        return (self.group, self.id, self.index, self.cell)

    @property
    def key(self) -> Key:
        """What no two records of one evaluation share."""
        return (*self.item, self.chosen_position, self.sample)

    def to_json(self) -> dict[str, Any]:
        """The line of a records file; what says nothing is left out after `seconds`."""
        line: dict[str, Any] = {
            "benchmark": self.benchmark,
            "id": self.id,
            "index": self.index,
            "group": self.group,
            "cell": None if self.cell is None else list(self.cell),
            "chosen_position": self.chosen_position,
            "verdict": self.verdict,
            "problem": self.problem,
            "correct": int(self.correct) if self.correct in (0, 1) else self.correct,
            "trace": self.trace,
            "prompt_tokens": self.prompt_tokens,
            "trace_tokens": self.trace_tokens,
            "seconds": self.seconds,
        }
        extras = {
            "sample": self.sample or None,
            "confidence": self.confidence,
            "forced": self.forced or None,
            "prompt": self.prompt,
        }
        return line | {name: value for name, value in extras.items() if value is not None}


def grade(verdict: Side | None, chosen_position: Side, rule: Rule = "published") -> float:
    """1 if the verdict is the chosen response, 0 if it is the other; else what the rule says.

    Both brackets in a trace, or none, score 0 in RM-R1's evaluation (process_judgement in
    generative.py), where the original RewardBench gives 0.5.
    """
    if verdict is None:
        return NO_VERDICT[rule]
    return 1.0 if verdict == chosen_position else 0.0


def record_from_json(line: object, rule: Rule = "published") -> Record:
    """A line of a records file. `verdict` is parsed from `trace` where it is absent.

    A `correct` that is given must not contradict the verdict, but for one of 0 or 0.5 where there
    is none; the rule that is asked for decides then. Raises UserError that names the field.
    """
    if not isinstance(line, Mapping):
        raise UserError("is no record; each line must be an object with named fields")
    trace = _optional(line, "trace", str)
    problem = _one_of(line, "problem", (*get_args(Problem), None))
    position = _one_of(line, "chosen_position", ("A", "B"))
    given = _correct(line)
    correct = given
    if "verdict" in line or trace is not None:
        if "verdict" in line:
            verdict = _one_of(line, "verdict", ("A", "B", None))
            if verdict is None and problem is None and trace is not None:
                problem = answer(trace, "evaluation").problem
        else:
            found = answer(cast(str, trace), "evaluation")
            verdict, problem = found.verdict, problem or found.problem
        correct = grade(verdict, position, rule)
        if given is not None and given != correct and (verdict is not None or given == 1):
            raise UserError(
                f"correct: is {given:g}, but verdict {verdict or 'null'} where the chosen response "
                f"is {position} scores {correct:g}; leave correct out, or mend one of them"
            )
    else:
        verdict = None
        if correct is None:
            raise UserError("verdict: is missing, and so are trace and correct; give one of them")
    return Record(
        benchmark=_needed(line, "benchmark", str),
        id=str(_needed(line, "id", (str, int))),
        index=_needed(line, "index", int, at_least=0),
        group=_needed(line, "group", str),
        cell=_cell(line.get("cell")),
        chosen_position=position,
        verdict=verdict,
        problem=problem,
        correct=correct,
        trace=trace,
        prompt_tokens=_optional(line, "prompt_tokens", int, at_least=0),
        trace_tokens=_optional(line, "trace_tokens", int, at_least=0),
        seconds=_optional(line, "seconds", (int, float), at_least=0),
        sample=_optional(line, "sample", int, at_least=0) or 0,
        confidence=_optional(line, "confidence", (int, float), at_least=0, at_most=1),
        forced=bool(line.get("forced")),
        prompt=_optional(line, "prompt", str),
    )


def read_records(path: Path, benchmark: str, rule: Rule = "published") -> list[Record]:
    """All records of a file, which must be of one benchmark and of one run.

    Raises UserError that names file, line and field.
    """
    records: list[Record] = []
    seen: dict[Key, int] = {}
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                try:
                    record = record_from_json(json.loads(raw), rule)
                except (UserError, ValueError) as error:
                    raise UserError(f"{path}, line {number}: {error}") from error
                if record.benchmark != benchmark:
                    raise UserError(
                        f"{path}, line {number}: benchmark: is {record.benchmark!r}; this file "
                        f"holds the records of {benchmark}"
                    )
                if record.key in seen:
                    raise UserError(
                        f"{path}, lines {seen[record.key]} and {number}: are both about {record.id}"
                        f" ({record.group}), chosen response {record.chosen_position}: records of "
                        "two runs are in one file; keep one of them"
                    )
                seen[record.key] = number
                records.append(record)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return records


def _needed(line: Mapping[str, Any], field: str, kind: Any, **bounds: float) -> Any:
    value = _optional(line, field, kind, **bounds)
    if value is None:
        raise UserError(f"{field}: is missing")
    return value


def _optional(
    line: Mapping[str, Any],
    field: str,
    kind: Any,
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> Any:
    value = line.get(field)
    if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(
            {str: "a text", int: "a whole number", float: "a number"}[k] for k in kinds
        )
        raise UserError(f"{field}: is {json.dumps(value)[:80]}; it must be {wanted}")
    # NaN and infinity are numbers in Python's JSON, and in no count.
    if isinstance(value, int | float) and not (
        math.isfinite(value) and at_least <= value <= at_most
    ):
        upper = f" to {at_most:g}" if at_most < math.inf else " or more"
        raise UserError(f"{field}: is {value!r}; it must be {at_least:g}{upper}")
    return value


def _one_of(line: Mapping[str, Any], field: str, known: tuple[Any, ...]) -> Any:
    value = line.get(field)
    if value not in known:
        shown = ", ".join("null" if each is None else each for each in known)
        found = "is missing" if value is None else f"is {json.dumps(value)[:80]}"
        raise UserError(f"{field}: {found}; it must be one of {shown}")
    return value


def _correct(line: Mapping[str, Any]) -> float | None:
    value = line.get("correct")
    if value is None:
        return None
    if value not in (0, 0.5, 1):  # true and false are 1 and 0
        raise UserError(f"correct: is {json.dumps(value)[:80]}; it must be 0, 0.5 or 1")
    return float(value)


def _cell(value: object) -> Cell | None:
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not isinstance(value[0], int | str)
        or not isinstance(value[1], int)
    ):
        raise UserError(
            f"cell: is {json.dumps(value)[:80]}; it must be [chosen style, rejected style], "
            "[query id, loser index] or null"
        )
    return cast(Cell, (value[0], value[1]))
