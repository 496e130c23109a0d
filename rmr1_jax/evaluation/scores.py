"""Records of judgements in, scores out: a pure function, whoever made the records."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmarks import BENCHMARKS
from rmr1_jax.evaluation.record import Record, Rule
from rmr1_jax.evaluation.statistics import REPLICATES, Means, Score, number, scores
from rmr1_jax.evaluation.votes import by_judgement, by_majority, expected_credit

LENGTH_BINS = 5
CONFIDENCE_BINS = 10
# The paper averages these three, each benchmark's own total.
AVERAGE = {
    "average": ("rewardbench overall", "rm_bench as_published.total", "rmb overall"),
    "average_corrected": ("rewardbench overall", "rm_bench corrected.total", "rmb overall"),
}


def score_run(
    records: Mapping[str, Sequence[Record]],
    *,
    rule: Rule = "published",
    missing: Mapping[str, list[str]] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Any]:
    """All scores of one evaluation, by benchmark: what `scores.json` holds.

    Of the records of a benchmark, those that differ in `sample` alone are votes on one judgement.
    `missing` says for a benchmark what it lacks; where it says nothing, the scores that are
    incomplete are named. `rule` is what a tie of votes is worth; the records have been graded.
    Values are fractions, and None where nothing was judged. Raises UserError for a benchmark that
    is not known.
    """
    check_benchmarks(records)
    result: dict[str, Any] = {}
    found: dict[str, Score] = {}
    for name in (each for each in BENCHMARKS if each in records):
        majority = by_majority(records[name], rule)
        table = BENCHMARKS[name].make_table(majority, rule)
        own = scores(table, replicates, seed)
        if (missing or {}).get(name) and all(score.complete for score in own.values()):
            # The records alone cannot tell what a file of anybody's pairs had besides.
            own = {each: replace(score, complete=False) for each, score in own.items()}
        found |= {f"{name} {score}": value for score, value in own.items()}
        complete = all(score.complete for score in own.values())
        result[name] = (
            nested({score: value.to_json() for score, value in own.items()})
            | _counts(records[name])
            | {
                "missing": list((missing or {}).get(name) or _incomplete(own)),
                "position": _position(majority, complete, replicates, seed),
                "confidence": _confidence(records[name]),
                "by_length": _by_length(records[name]),
                "votes": _votes(records[name], rule, replicates, seed),
            }
            | table.details()
        )
    for average, parts in AVERAGE.items():
        result[average] = _average([found.get(part) for part in parts]).to_json()
    result["rule"] = rule
    result["bootstrap"] = {"replicates": replicates, "seed": seed}
    return plain(result)


def check_benchmarks(names: Mapping[str, object]) -> None:
    """Raises UserError that names the first benchmark that is not known."""
    for name in names:
        if name not in BENCHMARKS:
            raise UserError(f"benchmark {name!r} is not known; there are {', '.join(BENCHMARKS)}")


def nested(scores: Mapping[str, Any]) -> dict[str, Any]:
    """{"subsets.donotanswer": x} as {"subsets": {"donotanswer": x}}: cut at the first dot only."""
    tree: dict[str, Any] = {}
    for name, value in scores.items():
        first, dot, rest = name.partition(".")
        if dot:
            tree.setdefault(first, {})[rest] = value
        else:
            tree[first] = value
    return tree


def plain(value: Any) -> Any:
    """`value` as JSON has it: plain numbers, and None for NaN."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return number(value) if isinstance(value, float) else value


def cluster(record: Record) -> str:
    """What a judgement shares with others about the same conversation."""
    return record.prompt or record.id


def mean_trace_tokens(records: Sequence[Record]) -> float | None:
    """The mean length of the traces, as far as it is known."""
    lengths = [each.trace_tokens for each in records if each.trace_tokens is not None]
    return sum(lengths) / len(lengths) if lengths else None


def _counts(records: Sequence[Record]) -> dict[str, Any]:
    problems = Counter(record.problem for record in records)
    timed = [record for record in records if record.seconds is not None]
    seconds = math.fsum(record.seconds or 0 for record in timed)
    tokens = sum(record.trace_tokens or 0 for record in timed)
    return {
        "judgements": len(records),
        "truncated": problems["truncated"],
        "none": problems["none"],
        "both": problems["both"],
        "prompt_too_long": problems["prompt_too_long"],
        "forced": sum(record.forced for record in records),
        "mean_trace_tokens": mean_trace_tokens(records),
        "seconds": seconds if timed else None,
        "tokens_per_second": tokens / seconds if seconds and tokens else None,
    }


def _incomplete(own: Mapping[str, Score]) -> list[str]:
    return [
        f"{name}: incomplete ({score.n:,} judged)" if score.n else f"{name}: nothing judged"
        for name, score in own.items()
        if not score.complete
    ]


def _position(
    records: Sequence[Record], complete: bool, replicates: int, seed: int
) -> dict[str, Any]:
    """Whether it matters where a response stands. `consistent` needs both orders of an item."""
    correct = np.array([record.correct for record in records])
    said = np.array([np.nan if r.verdict is None else r.verdict == "A" for r in records], float)
    at_a = np.array([record.chosen_position == "A" for record in records], bool)
    columns = {
        "said_a": said,
        "chosen_a": np.where(at_a, correct, np.nan),
        "chosen_b": np.where(at_a, np.nan, correct),
        "consistent": _consistent(records),
    }
    clusters = [cluster(record) for record in records]
    found = scores(Means(clusters, columns, complete), replicates, seed)
    position = {name: score.to_json() for name, score in found.items()}
    return position if found["consistent"].n else position | {"consistent": None}


def _consistent(records: Sequence[Record]) -> Float[np.ndarray, " judgements"]:
    """At an item's second order: 1 if the same response won in both; else NaN."""
    first: dict[Any, Record] = {}
    column = np.full(len(records), np.nan)
    for i, record in enumerate(records):
        other = first.setdefault(record.item, record)
        if other is not record:
            wins = [each.verdict == each.chosen_position for each in (other, record)]
            verdicts = other.verdict is not None and record.verdict is not None
            column[i] = verdicts and wins[0] == wins[1]
    return column


def _confidence(records: Sequence[Record]) -> dict[str, Any] | None:
    """How often a verdict is right, by the probability that the judge gave to it."""
    pairs = [
        (record.confidence if record.verdict == "A" else 1 - record.confidence, record.correct)
        for record in records
        if record.confidence is not None and record.verdict is not None
    ]
    if not pairs:
        return None
    sure, correct = np.array(pairs, float).T
    place = np.minimum((sure * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    return {
        "mean": sure.mean(),
        "n": len(pairs),
        "bins": [
            {
                "from": i / CONFIDENCE_BINS,
                "to": (i + 1) / CONFIDENCE_BINS,
                "n": int((place == i).sum()),
                "accuracy": correct[place == i].mean(),
            }
            for i in np.unique(place).tolist()
        ],
    }


def _by_length(records: Sequence[Record]) -> list[dict[str, Any]] | None:
    """Accuracy by the length of the trace, in bins of about as many; equal lengths share one."""
    pairs = [(r.trace_tokens, r.correct) for r in records if r.trace_tokens is not None]
    if not pairs:
        return None
    length, correct = np.array(pairs, float).T
    inner = np.quantile(length, np.arange(1, LENGTH_BINS) / LENGTH_BINS)
    place = np.searchsorted(np.unique(inner), length, side="left")
    bins = [(length[place == i], correct[place == i]) for i in np.unique(place)]
    return [
        {
            "from": int(lengths.min()),
            "to": int(lengths.max()),
            "n": len(lengths),
            "accuracy": right.mean(),
        }
        for lengths, right in bins
    ]


def _votes(
    records: Sequence[Record], rule: Rule, replicates: int, seed: int
) -> list[dict[str, Any]] | None:
    """Accuracy over judgements by how many samples vote, each the mean over all ways to draw so
    many of them."""
    groups = list(by_judgement(records).values())
    most = max(map(len, groups), default=0)
    if most < 2:
        return None
    columns = {
        str(k): np.array([expected_credit(samples, k, rule) for samples in groups])
        for k in range(1, most + 1)
    }
    found = scores(Means([cluster(each[0]) for each in groups], columns), replicates, seed)
    return [
        {"k": int(k), "value": score.value, "stderr": score.stderr} for k, score in found.items()
    ]


def _average(parts: Sequence[Score | None]) -> Score:
    """The mean of the benchmarks; their errors are independent, as their prompts are."""
    there = [part for part in parts if part is not None]
    values = [part.value for part in there if part.value is not None]
    errors = [part.stderr for part in there if part.stderr is not None]
    whole = len(values) == len(parts)
    return Score(
        value=math.fsum(values) / len(parts) if whole else None,
        n=sum(part.n for part in there),
        complete=whole and all(part.complete for part in there),
        stderr=math.hypot(*errors) / len(parts) if whole and len(errors) == len(parts) else None,
    )
