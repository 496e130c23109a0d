"""What a page shows of scores: numbers in points with their names, and what to be wary of."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rmr1_jax.evaluation.benchmarks import BENCHMARKS

LABELS = {
    "chat_hard": "Chat Hard",
    "micro": "Micro",
    "hard": "Hard",
    "pairwise_helpfulness": "Pairwise, helpfulness",
    "pairwise_harmlessness": "Pairwise, harmlessness",
    "bon_helpfulness": "Best-of-N, helpfulness",
    "bon_harmlessness": "Best-of-N, harmlessness",
    "as_published": "As published",
    "corrected": "Corrected",
    "Pairwise_set": "Pairwise",
    "BoN_set": "Best-of-N",
}
# What becomes of a benchmark in one number: its own total.
TOTALS = {"rm_bench": ("as_published.total", "corrected.total")}
# Judgements without a verdict, as a share of all, from which a page warns of them.
MANY = 0.05
# So many missing parts are named in the line of the warning itself.
BRIEF = 3


class Number(NamedTuple):
    """A score in points, 0 to 100. Nothing was judged where the value is None."""

    label: str
    value: float | None
    error: float | None = None
    n: int | None = None
    complete: bool = True


class Warning(NamedTuple):
    text: str
    parts: list[str]
    """What it is about, where there is more to say than fits a line."""


class Panel(NamedTuple):
    title: str
    numbers: list[Number]


class Benchmark(NamedTuple):
    """A benchmark's part of the page."""

    name: str
    title: str
    totals: list[Number]
    panels: list[Panel]
    """The few scores that have names of their own."""
    lists: list[Panel]
    """Subsets, scenarios, sources: long lists."""
    scores: Mapping[str, Any]
    """Its part of scores.json."""


def title(name: str) -> str:
    return BENCHMARKS[name].title if name in BENCHMARKS else name


def label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " ").capitalize() if name.islower() else name)


def points(value: float | None) -> float | None:
    return None if value is None else 100 * value


def as_number(name: str, score: Mapping[str, Any]) -> Number:
    return Number(
        name, points(score["value"]), points(score["stderr"]), score["n"], score["complete"]
    )


def is_score(value: object) -> bool:
    return isinstance(value, Mapping) and {"value", "n", "complete", "stderr"} <= value.keys()


def benchmarks(scores: Mapping[str, Any]) -> list[Benchmark]:
    """The benchmarks of scores.json. One that came later than this page is laid out alike."""
    names = [name for name, part in scores.items() if isinstance(part, dict) and "position" in part]
    return [_benchmark(name, scores[name]) for name in names]


def _benchmark(name: str, scores: Mapping[str, Any]) -> Benchmark:
    plain = [as_number(label(key), value) for key, value in scores.items() if is_score(value)]
    panels = [Panel("Scores", plain)] if plain else []
    lists: list[Panel] = []
    for key, part in scores.items():
        if key == "position" or not isinstance(part, Mapping) or is_score(part):
            continue
        numbers = {name: value for name, value in part.items() if is_score(value)}
        if key in ("subsets", "scenarios", "groups"):
            lists += _lists(label(key), numbers)
        elif numbers:
            panels.append(Panel(label(key), [as_number(label(n), v) for n, v in numbers.items()]))
    return Benchmark(name, title(name), _totals(name, scores), panels, lists, scores)


def _totals(name: str, scores: Mapping[str, Any]) -> list[Number]:
    totals: list[Number] = []
    for path in TOTALS.get(name, ("overall",)):
        score: Any = scores
        for step in path.split("."):
            score = score.get(step, {})
        if is_score(score):
            totals.append(as_number(label(path.split(".")[0]), score))
    return totals


def _lists(heading: str, numbers: Mapping[str, Any]) -> list[Panel]:
    """One list; or, of paths such as Pairwise_set/Harmlessness/S1, one for each first two steps."""
    found: dict[str, list[Number]] = {}
    for name, score in numbers.items():
        steps = name.split("/", 2)
        if len(steps) == 3:
            under = f"{heading}: {label(steps[0])}, {steps[1].lower()}"
            found.setdefault(under, []).append(as_number(steps[2], score))
        else:
            found.setdefault(heading, []).append(as_number(name, score))
    return [Panel(*each) for each in found.items()]


def warnings(scores: Mapping[str, Any]) -> list[Warning]:
    """What a reader must know before the numbers, in plain words."""
    worth = "half" if scores.get("rule") == "rewardbench" else "0"
    found: list[Warning] = []
    for each in benchmarks(scores):
        part, total = each.scores, each.scores.get("judgements") or 0
        missing = part.get("missing") or []
        if len(missing) > BRIEF:
            found.append(Warning(f"{each.title} is incomplete ({len(missing):,} notes)", missing))
        elif missing:
            found.append(Warning(f"{each.title} is incomplete: {'; '.join(missing)}.", []))
        counts = {
            "ran into the token limit before a verdict": part.get("truncated") or 0,
            "had a prompt that does not fit the model's context": part.get("prompt_too_long") or 0,
        }
        unclear = (part.get("none") or 0) + (part.get("both") or 0)
        if total and unclear / total >= MANY:
            counts["ended with no verdict or with both"] = unclear
        clauses = [
            f"{n:,} ({100 * n / total:.1f} %) {words}" for words, n in counts.items() if n and total
        ]
        if clauses:
            text = (
                f"{each.title}: of {total:,} judgements, {in_words(clauses)}. These count {worth}."
            )
            found.append(Warning(text, []))
    return found


def position(part: Mapping[str, Any]) -> list[Number]:
    """How much it matters where a response stands."""
    names = {
        "said_a": "Says A",
        "chosen_a": "At A",
        "chosen_b": "At B",
        "consistent": "Consistent",
    }
    found = part.get("position") or {}
    return [as_number(words, found[name]) for name, words in names.items() if found.get(name)]


def by_length(part: Mapping[str, Any]) -> list[Number]:
    return [
        Number(f"{each['from']:,} to {each['to']:,}", points(each["accuracy"]), None, each["n"])
        for each in part.get("by_length") or ()
    ]


def by_confidence(part: Mapping[str, Any]) -> list[Number]:
    bins = (part.get("confidence") or {}).get("bins", ())
    return [
        Number(
            f"{100 * each['from']:.0f} to {100 * each['to']:.0f} %",
            points(each["accuracy"]),
            None,
            each["n"],
        )
        for each in bins
    ]


def facts(part: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the judgements of a benchmark cost, and how they ended."""
    found = [("judgements", f"{part.get('judgements') or 0:,}")]
    names = {
        "truncated": "truncated",
        "none": "no verdict",
        "both": "both verdicts",
        "prompt_too_long": "prompt too long",
        "forced": "forced at the budget",
    }
    found += [(words, f"{part[name]:,}") for name, words in names.items() if part.get(name)]
    if part.get("mean_trace_tokens") is not None:
        found.append(("tokens a trace", f"{part['mean_trace_tokens']:,.0f}"))
    if part.get("tokens_per_second") is not None:
        found.append(("tokens a second", f"{part['tokens_per_second']:,.1f}"))
    if part.get("seconds") is not None:
        found.append(("in all", duration(part["seconds"])))
    return found


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def in_words(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
