"""An evaluation, or several side by side, as one page that opens offline."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation import report_published, report_scores
from rmr1_jax.evaluation.charts import Plot, Point, plot
from rmr1_jax.evaluation.comparison import compare
from rmr1_jax.evaluation.record import Record
from rmr1_jax.evaluation.report_comparison import comparison_samples, comparison_view
from rmr1_jax.evaluation.report_samples import (
    OUTCOMES,
    STYLES,
    Texts,
    choose_records,
    embedded,
    judgement,
    read_items,
    sample,
)
from rmr1_jax.evaluation.report_scores import Number
from rmr1_jax.evaluation.results import SCORES, Results
from rmr1_jax.evaluation.votes import outcome
from rmr1_jax.io.atomic_write import atomic_write
from rmr1_jax.io.page import render_page

REPORT = "report.html"
COMPARISON, COMPARISON_PAGE = "comparison.json", "comparison.html"
# A list of more numbers than this is set in parts, which two columns can share.
COLUMN = 16


def write_report(output: Path, *, samples: int = 1000) -> Path:
    """Draw `report.html` from the scores, records, items and settings of a directory.

    Items and settings may be absent. Of each benchmark at most `samples` judgements can be read on
    the page; the page says of how many. Raises UserError where scores or records are absent or
    damaged.
    """
    results = Results(output)
    scores, written = _read_scores(output / SCORES)
    info = results.run_info() or {}
    records = results.read(scores.get("rule", "published"))
    shown = report_scores.benchmarks(scores)
    model = _model(output, info)
    sheet = report_published.main_sheet(scores, model)
    ours = [number for row in sheet.rows if row.ours for number in row.numbers]
    averages = [
        report_scores.as_number(words, scores[name])
        for name, words in (("average", "as published"), ("average_corrected", "corrected"))
        if name in scores
    ]
    carried, sampled = _samples(results, records, samples)
    text = render_page(
        "rmr1_jax.evaluation",
        "report.html.jinja",
        "browser.js",
        model=model,
        judged=_judged(records),
        prompt=info.get("prompt_source"),
        written=f"Scored {written:%Y-%m-%d %H:%M} UTC.",
        warnings=report_scores.warnings(scores),
        settings=_settings(info),
        scores=scores,
        benchmarks=shown,
        averages=averages,
        kinds=report_published.KINDS,
        sheet=sheet,
        strips=report_published.strips(sheet),
        beside=any(number.value is not None for number in ours),
        marked=not all(number.complete for number in ours),
        sections=report_published.section_sheets(scores, model),
        styles=STYLES,
        facts=report_scores.facts,
        position=report_scores.position,
        by_length=report_scores.by_length,
        by_confidence=report_scores.by_confidence,
        expected=_expected,
        votes=_votes,
        halves=_halves,
        data=embedded(carried) if carried["samples"] else "",
        sampled=sampled,
    )
    return atomic_write(output / REPORT, text)


def write_comparison(outputs: Sequence[Path], destination: Path, *, samples: int = 1000) -> Path:
    """Compare the records of several directories: `comparison.json` and `comparison.html`.

    Of the judgements of a benchmark where the runs disagree, at most `samples` can be read on the
    page. Raises UserError where nothing can be compared.
    """
    results = [Results(output) for output in outputs]
    rules = {_rule(output) for output in outputs}
    if len(rules) > 1:
        raise UserError(
            "the runs were scored by different rules (a judgement without a verdict counts 0 in "
            "one and 0.5 in another); score them again by one rule"
        )
    rule = rules.pop()
    records = [each.read(rule) for each in results]
    names = _names(outputs)
    compared = compare(list(zip(names, records, strict=True)), rule=rule)
    atomic_write(
        destination / COMPARISON,
        json.dumps(compared, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    )
    carried, sampled = comparison_samples(compared, results, records, samples)
    text = render_page(
        "rmr1_jax.evaluation",
        "comparison.html.jinja",
        "browser.js",
        runs=names,
        models=[_model(each.output, each.run_info() or {}) for each in results],
        data=embedded(carried) if carried["samples"] else "",
        sampled=sampled,
        **comparison_view(compared),
    )
    return atomic_write(destination / COMPARISON_PAGE, text)


def _read_scores(file: Path) -> tuple[dict[str, Any], datetime]:
    try:
        scores = json.loads(file.read_text(encoding="utf-8"))
        written = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    except FileNotFoundError as error:
        raise UserError(f"{file}: is not there; score the records first") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); score the records again") from error
    if not isinstance(scores, dict) or "bootstrap" not in scores:
        raise UserError(f"{file}: holds no scores of an evaluation; score the records again")
    return scores, written


def _rule(output: Path) -> Any:
    if not (output / SCORES).exists():
        return "published"
    return _read_scores(output / SCORES)[0].get("rule", "published")


def _model(output: Path, info: Mapping[str, Any]) -> str:
    model = info.get("settings", {}).get("model")
    return Path(str(model)).name or str(model) if model else output.resolve().name


def _names(outputs: Sequence[Path]) -> list[str]:
    """The directories' names; their paths where two have the same."""
    names = [output.resolve().name for output in outputs]
    return names if len(set(names)) == len(names) else [str(output) for output in outputs]


def _settings(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `run.json` says, but for what was left as it is."""
    flat = {**info.get("settings", {}), **info}
    flat.pop("settings", None)
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in flat.items()
        if value not in (None, "", {}, [])
    ]


def _judged(records: Mapping[str, Sequence[Record]]) -> str:
    """One line of what was judged."""
    parts: list[str] = []
    for name, own in records.items():
        items = len({record.item for record in own})
        how = [f"{items:,} pairs of {report_scores.title(name)}"]
        if len({(record.item, record.chosen_position) for record in own}) > items:
            how.append("in both orders")
        if votes := max((record.sample for record in own), default=0):
            how.append(f"with {votes + 1} votes")
        parts.append(" ".join(how))
    total = sum(map(len, records.values()))
    return f"{total:,} judgements: {report_scores.in_words(parts)}."


def _samples(
    results: Results, records: Mapping[str, Sequence[Record]], count: int
) -> tuple[dict[str, Any], str]:
    texts = Texts()
    shown: list[Mapping[str, Any]] = []
    said: list[str] = []
    for name, own in records.items():
        chosen = choose_records(own, count)
        items = read_items(results.items_file(name), (record.item for record in chosen))
        voted = any(record.sample for record in own)
        shown += [
            sample(
                record,
                items.get(record.item),
                [judgement(record, voted=voted)],
                texts,
                OUTCOMES[outcome(record)],
            )
            for record in chosen
        ]
        if len(chosen) < len(own):
            said.append(f"{len(chosen):,} of {len(own):,} of {report_scores.title(name)}")
    sampled = (
        f"The page holds {report_scores.in_words(said)}, drawn evenly over groups and outcomes; "
        "all are in the folder “records” beside it."
        if said
        else "All judgements."
    )
    titles = {name: report_scores.title(name) for name in records}
    return {"texts": texts.all, "samples": shown, "titles": titles}, sampled


def _votes(part: Mapping[str, Any]) -> Plot:
    points = [
        Point(
            each["k"], 100 * each["value"], None if each["stderr"] is None else 100 * each["stderr"]
        )
        for each in part["votes"]
    ]
    return plot(points, "votes", line=True)


def _expected(part: Mapping[str, Any]) -> list[float]:
    """Where the bars of confidence would end if it were accuracy: the middle of each bin."""
    return [50 * (each["from"] + each["to"]) for each in part["confidence"]["bins"]]


def _halves(numbers: Sequence[Number]) -> list[Sequence[Number]]:
    parts = -(-len(numbers) // COLUMN)
    size = -(-len(numbers) // parts) if parts else 1
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]
