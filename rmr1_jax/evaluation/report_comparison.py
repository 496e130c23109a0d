"""What a page shows of runs side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rmr1_jax.evaluation.charts import Plot, Point, plot
from rmr1_jax.evaluation.comparison import Subject, by_subject
from rmr1_jax.evaluation.record import Record
from rmr1_jax.evaluation.report_samples import (
    Texts,
    choose,
    judgement,
    read_items,
    sample,
)
from rmr1_jax.evaluation.report_scores import (
    Number,
    as_number,
    in_words,
    label,
    points,
    title,
)
from rmr1_jax.evaluation.results import Results
from rmr1_jax.evaluation.votes import Judgement


class Difference(NamedTuple):
    """Run `b` minus run `a`, in points, with the ends of its 95 % interval."""

    benchmark: str
    a: str
    b: str
    value: float
    low: float | None
    high: float | None
    counts: Mapping[str, Any]
    """Of comparison.json: n, both_right, only_a, only_b, both_wrong, p."""


class Forest(NamedTuple):
    """Differences on one axis, from -reach to reach points."""

    reach: float
    ticks: list[float]
    rows: list[Difference]

    def place(self, value: float) -> float:
        """In percent of the axis."""
        return round(50 + 50 * min(max(value / self.reach, -1.0), 1.0), 3)


def comparison_view(compared: Mapping[str, Any]) -> dict[str, Any]:
    """What the template needs of comparison.json."""
    runs = compared["runs"]
    parts = compared["benchmarks"]
    return {
        "forest": _forest(runs, parts),
        "headlines": {
            title(name): [
                (_headline(score), values, part["headline_differences"][score])
                for score, values in part["headline"].items()
            ]
            for name, part in parts.items()
        },
        "pairs": {title(name): part["pairs"] for name, part in parts.items()},
        "accuracies": {
            title(name): [
                as_number(run, each) for run, each in zip(runs, part["accuracy"], strict=True)
            ]
            for name, part in parts.items()
        },
        "effort": {title(name): _effort(runs, part) for name, part in parts.items()},
        "tokens": {title(name): part.get("mean_trace_tokens") for name, part in parts.items()},
        "remarks": _remarks(compared),
    }


def _headline(name: str) -> str:
    return ", ".join(
        label(step).lower() if i else label(step) for i, step in enumerate(name.split("."))
    )


def _forest(runs: Sequence[str], parts: Mapping[str, Any]) -> Forest:
    rows = [
        Difference(
            title(name),
            runs[each["a"]],
            runs[each["b"]],
            100 * each["difference"],
            points(each["low"]),
            points(each["high"]),
            each,
        )
        for name, part in parts.items()
        for each in part["differences"]
    ]
    ends = [abs(end) for row in rows for end in (row.value, row.low, row.high) if end is not None]
    reach = next(r for r in (2, 5, 10, 20, 40, 60, 100) if r >= min(max(ends, default=0), 100))
    return Forest(reach, [-reach, -reach / 2, 0, reach / 2, reach], rows)


def _effort(runs: Sequence[str], part: Mapping[str, Any]) -> Plot | None:
    """Accuracy over what the traces cost; None where fewer than two runs know their lengths."""
    lengths = part.get("mean_trace_tokens") or [None] * len(runs)
    found: list[Point] = []
    for run, tokens, score in zip(runs, lengths, part["accuracy"], strict=True):
        number: Number = as_number(run, score)
        if tokens is not None and number.value is not None:
            found.append(Point(tokens, number.value, number.error, run))
    return plot(found, "tokens a trace, mean") if len(found) > 1 else None


def _remarks(compared: Mapping[str, Any]) -> list[str]:
    """What is not in the comparison."""
    found: list[str] = []
    if left := compared.get("not_compared"):
        found.append(f"Not judged by all runs, and left out: {in_words(map(title, left))}.")
    for name, part in compared["benchmarks"].items():
        alone = [
            f"{n:,} of {run}"
            for run, n in zip(compared["runs"], part.get("unmatched", ()), strict=False)
            if n
        ]
        if alone:
            found.append(f"{title(name)}: without a counterpart, and left out: {in_words(alone)}.")
    return found


def comparison_samples(
    compared: Mapping[str, Any],
    results: Sequence[Results],
    records: Sequence[Mapping[str, Sequence[Record]]],
    count: int,
) -> tuple[dict[str, Any], str]:
    """The judgements that the runs disagree on, with all their traces; and how many are shown."""
    texts = Texts()
    shown: list[Mapping[str, Any]] = []
    said: list[str] = []
    runs = compared["runs"]
    for name, part in compared["benchmarks"].items():
        own = [by_subject(each[name]) for each in records]
        keys = _subjects(own[0], part["disagree"])
        order = [key for key in own[0] if key in keys]
        outcomes = [_who_is_right(runs, keys[key]["correct"]) for key in order]
        chosen = choose([(key[0], who) for key, who in zip(order, outcomes, strict=True)], count)
        wanted = [own[0][order[place]][0].item for place in chosen]
        items: dict[Any, Mapping[str, Any]] = {}
        for each in results:  # the first that kept them
            items = read_items(each.items_file(name), wanted) | items
        for place in chosen:
            key = order[place]
            judgements = [
                judgement(
                    _speaker(mine[key], keys[key]["verdicts"][run]),
                    runs[run],
                    voted=len(mine[key]) > 1,
                )
                for run, mine in enumerate(own)
            ]
            about = own[0][key][0]
            shown.append(sample(about, items.get(about.item), judgements, texts, outcomes[place]))
        said.append(f"{len(chosen):,} of {len(order):,} of {title(name)}")
    sampled = f"Judgements on which the runs disagree: {in_words(said)} are shown."
    titles = {name: title(name) for name in compared["benchmarks"]}
    return {"texts": texts.all, "samples": shown, "titles": titles}, sampled


def _subjects(
    first: Mapping[Subject, Sequence[Record]], disagree: Sequence[Mapping[str, Any]]
) -> dict[Subject, Mapping[str, Any]]:
    """Disagreements by what they are about; comparison.json names them as the first run does."""
    subjects = {}
    for subject, samples in first.items():
        group, id, cell, position, _ = subject
        subjects[group, id, samples[0].index, cell, position] = subject
    return {subjects[_key(each["key"])]: each for each in disagree}


def _key(key: Mapping[str, Any]) -> Judgement:
    cell = None if key["cell"] is None else tuple(key["cell"])
    return (key["group"], key["id"], key["index"], cell, key["chosen_position"])


def _speaker(samples: Sequence[Record], verdict: str | None) -> Record:
    """Of several votes, the first one that says what the majority does."""
    return next((each for each in samples if each.verdict == verdict), samples[0])


def _who_is_right(runs: Sequence[str], correct: Sequence[float]) -> str:
    right = [run for run, credit in zip(runs, correct, strict=True) if credit == 1]
    if not right:
        return "none is right"
    return f"{'only ' if len(right) == 1 else ''}{in_words(right)} right"
