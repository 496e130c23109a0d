"""Two or more runs on the same judgements: differences with intervals, and where they disagree."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, count
from typing import Any

import numpy as np

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmark import Table
from rmr1_jax.evaluation.benchmarks import BENCHMARKS
from rmr1_jax.evaluation.record import Cell, Record, Rule
from rmr1_jax.evaluation.scores import check_benchmarks, cluster, mean_trace_tokens, plain
from rmr1_jax.evaluation.statistics import REPLICATES, Means, mcnemar, replicate_values, scores
from rmr1_jax.evaluation.votes import by_judgement, by_majority
from rmr1_jax.judging import Side

# The lists of these are long, and each entry is small: they are no headlines.
LISTS = ("subsets", "scenarios", "groups")
INTERVAL = (2.5, 97.5)
# Group, id, cell, where the chosen response stood; and a number where all of these are the same.
Subject = tuple[str, str, Cell | None, Side, int]
Run = tuple[str, Mapping[str, Sequence[Record]]]


def compare(
    runs: Sequence[Run], *, rule: Rule = "published", replicates: int = REPLICATES, seed: int = 0
) -> dict[str, Any]:
    """The runs, each with its name and records, on the judgements that all of them made.

    Judgements are the same where group, id, cell and place of the chosen response are, and the
    question as far as the records tell; several samples are one judgement by majority. Intervals
    are of the paired bootstrap: each replicate draws the same prompts for all runs. What other runs
    lack is counted as `unmatched` for each run, and benchmarks without a shared judgement are named
    in `not_compared`. Returns what `comparison.json` holds. Raises UserError where nothing can be
    compared.
    """
    if len(runs) < 2:
        raise UserError(f"one run cannot be compared; give two or more, found {len(runs)}")
    for _, records in runs:
        check_benchmarks(records)
    benchmarks: dict[str, Any] = {}
    shared: list[list[Record]] = [[] for _ in runs]
    for name in BENCHMARKS:
        groups = [by_subject(records.get(name, ())) for _, records in runs]
        keys = [key for key in groups[0] if _same_question([group.get(key) for group in groups])]
        if not keys:
            continue
        samples = [[group[key] for key in keys] for group in groups]
        for all_of_run, own in zip(shared, samples, strict=True):
            all_of_run.extend(record for each in own for record in each)
        majority = _same_prompts([by_majority(_flat(own), rule) for own in samples])
        benchmarks[name] = _benchmark(name, majority, rule, replicates, seed) | {
            "unmatched": [len(group) - len(keys) for group in groups],
            "mean_trace_tokens": [mean_trace_tokens(_flat(own)) for own in samples],
        }
    if not benchmarks:
        raise UserError(_nothing_shared(runs))
    judged = {name for _, records in runs for name, each in records.items() if each}
    return plain(
        {
            "runs": [name for name, _ in runs],
            "benchmarks": benchmarks,
            "not_compared": [name for name in BENCHMARKS if name in judged - benchmarks.keys()],
            "mean_trace_tokens": [mean_trace_tokens(records) for records in shared],
            "rule": rule,
            "bootstrap": {"replicates": replicates, "seed": seed},
        }
    )


def _benchmark(
    name: str, majority: Sequence[Sequence[Record]], rule: Rule, replicates: int, seed: int
) -> dict[str, Any]:
    """Of one benchmark; the judgements of each run are the same ones, in the same order."""
    tables = [BENCHMARKS[name].make_table(records, rule) for records in majority]
    complete = all(whole for _, whole in tables[0].support().values())
    correct = np.array([[record.correct for record in records] for records in majority])
    means = Means(
        [cluster(record) for record in majority[0]],
        {str(run): credits for run, credits in enumerate(correct)},
        complete,
    )
    accuracy = scores(means, replicates, seed)
    drawn = replicate_values(means, replicates, seed)
    values = [table.values(np.ones(len(table.strata))) for table in tables]
    return {
        "pairs": len(majority[0]),
        "accuracy": [score.to_json() for score in accuracy.values()],
        "differences": [
            _difference(a, b, correct[a], correct[b], drawn[str(b)] - drawn[str(a)])
            for a, b in combinations(range(len(majority)), 2)
        ],
        "headline": {
            score: [own[score] for own in values]
            for score in values[0]
            if score.split(".")[0] not in LISTS
        },
        "headline_differences": _headline_differences(tables, values, replicates, seed),
        "disagree": [
            _disagreement(records)
            for records in zip(*majority, strict=True)
            if len({(record.verdict, record.correct) for record in records}) > 1
        ],
    }


def _headline_differences(
    tables: Sequence[Table], values: Sequence[Mapping[str, float]], replicates: int, seed: int
) -> dict[str, list[dict[str, float | int]]]:
    """Of every headline, run b minus run a. The tables have the same prompts, so the same seed
    draws the same ones for all."""
    drawn = [replicate_values(table, replicates, seed) for table in tables]
    return {
        score: [
            {
                "a": a,
                "b": b,
                "difference": values[b][score] - values[a][score],
                **_interval(drawn[b][score] - drawn[a][score]),
            }
            for a, b in combinations(range(len(tables)), 2)
        ]
        for score in values[0]
        if score.split(".")[0] not in LISTS
    }


def _interval(drawn: np.ndarray) -> dict[str, float]:
    there = drawn[np.isfinite(drawn)]
    low, high = np.percentile(there, INTERVAL) if len(there) else (np.nan, np.nan)
    return {"low": float(low), "high": float(high)}


def _difference(
    a: int, b: int, credit_a: np.ndarray, credit_b: np.ndarray, drawn: np.ndarray
) -> dict[str, Any]:
    right_a, right_b = credit_a == 1, credit_b == 1
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return {
        "a": a,
        "b": b,
        "n": len(credit_a),
        "difference": float((credit_b - credit_a).mean()),
        **_interval(drawn),
        "only_a": only_a,
        "only_b": only_b,
        "both_right": int((right_a & right_b).sum()),
        "both_wrong": int((~right_a & ~right_b).sum()),
        "p": mcnemar(only_a, only_b),
    }


def _disagreement(records: Sequence[Record]) -> dict[str, Any]:
    first = records[0]
    return {
        "key": {
            "id": first.id,
            "group": first.group,
            "index": first.index,
            "cell": None if first.cell is None else list(first.cell),
            "chosen_position": first.chosen_position,
        },
        "verdicts": [record.verdict for record in records],
        "correct": [record.correct for record in records],
    }


def _flat(groups: Sequence[Sequence[Record]]) -> list[Record]:
    return [record for group in groups for record in group]


def by_subject(records: Sequence[Record]) -> dict[Subject, list[Record]]:
    """The samples of each judgement, by what it is about, in order.

    The index is where a run's source had the pair, and a part of a benchmark counts otherwise than
    the whole: it only tells apart what is the same in all else.
    """
    found: dict[Subject, list[Record]] = {}
    for samples in by_judgement(records).values():
        first = samples[0]
        same = (first.group, first.id, first.cell, first.chosen_position)
        number = next(n for n in count() if (*same, n) not in found)
        found[(*same, number)] = samples
    return found


def _same_question(samples: Sequence[Sequence[Record] | None]) -> bool:
    """All runs have it, and none says that the conversation was another."""
    if not all(samples):
        return False
    prompts = {record.prompt for own in samples for record in own or () if record.prompt}
    return len(prompts) <= 1


def _same_prompts(majority: Sequence[Sequence[Record]]) -> list[list[Record]]:
    """Prompts as one of the runs knows them, since the records of others may have none."""
    prompts = [
        next((record.prompt for record in records if record.prompt is not None), None)
        for records in zip(*majority, strict=True)
    ]
    return [
        [replace(record, prompt=prompt) for record, prompt in zip(records, prompts, strict=True)]
        for records in majority
    ]


def _nothing_shared(runs: Sequence[Run]) -> str:
    """Which runs have no judgement in common: the first two such, or only all of them together."""
    judged = [
        (name, {(each, subject) for each, own in records.items() for subject in by_subject(own)})
        for name, records in runs
    ]
    for (a, first), (b, second) in combinations(judged, 2):
        if not first & second:
            return (
                f"{a} and {b} have no judgement in common; compare runs of the same benchmark "
                "items in the same order (group, id, cell, chosen_position)"
            )
    return (
        f"no judgement is in all of {', '.join(name for name, _ in judged)}; compare fewer of them"
    )
