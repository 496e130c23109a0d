"""The results as a table for the terminal or for a Markdown document."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = (
    "model",
    "work",
    "rmr1_jax, tokens/s",
    "transformers, tokens/s",
    "ratio (pairs)",
    "first call, s (ours; theirs)",
    "time / floor (without prompts)",
    "occupancy (ours; theirs)",
    "prompt tokens computed / copies",
    "same greedy tokens",
)
ABSENT = "–"  # noqa: RUF001
DISTURBED = 0.1  # cores that others may use before the numbers are called unfit


def print_report(report: dict[str, Any], *, markdown: bool) -> None:
    """The tables and what they mean, on the standard output."""
    if markdown:
        print(as_markdown(report))
        return
    console = Console()
    for columns, rows in _tables(report):
        table = Table(*columns, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in notes(report):
        console.print(f"- {note}", highlight=False)


def as_markdown(report: dict[str, Any]) -> str:
    lines = []
    for columns, rows in _tables(report):
        lines += [_line(columns), _line(["---"] * len(columns)), *map(_line, rows), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes(report))])


def notes(report: dict[str, Any]) -> list[str]:
    """What was run, and how the columns are to be read."""
    settings, machine = report["settings"], report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    works: dict[str, str] = {}
    for model in report["models"]:
        works |= {work["name"]: work["title"] for work in model["workloads"]}
    found = [f"({name}) {title}." for name, title in works.items()]
    found += [
        f"{machine['processor']}, {settings['threads']} threads, fp32; {versions}. Medians of "
        f"{settings['repeats']} calls in turn, after a first call of each; the ratio of the "
        "medians, in brackets the lowest and highest of the pairs.",
        f"Copy bandwidth {report['bandwidth']['bytes_per_second'] / 1e9:.1f} GB/s "
        f"({report['bandwidth']['method']}). The floor is the time to read the weights once a step "
        "and the live KV entries once; prompts are computed besides, and in brackets their time "
        "(measured with responses of one token) is taken off.",
        "Occupancy: rows that made a token over all rows, over all steps.",
    ]
    attention = sorted(
        f"{work['name']}: {work['theirs']['attention']}, batches of {work['theirs']['batch']} rows"
        f" ({model['model']})"
        for model in report["models"]
        for work in model["workloads"]
        if "theirs" in work
    )
    if attention:
        found.append(f"transformers with its faster attention: {'; '.join(attention)}.")
    loads = [work["other_load"] or 0.0 for m in report["models"] for work in m["workloads"]]
    if max(loads, default=0.0) > DISTURBED:
        found.append(
            f"Not a quiet machine: other processes kept up to {max(loads):.2f} cores busy during "
            "the measured calls. Do not quote these numbers."
        )
    late = sum(work["ours"]["compiled"] for m in report["models"] for work in m["workloads"])
    if late:
        found.append(f"{late} programs were compiled during measured calls, which slowed them.")
    return found


def _tables(report: dict[str, Any]) -> list[tuple[Sequence[str], list[list[str]]]]:
    works = [_row(m["model"], work) for m in report["models"] for work in m["workloads"]]
    starts = [
        [
            model["model"],
            f"{model['startup']['cold']:.1f}",
            f"{model['startup']['warm']:.1f}",
            f"{model['startup']['warm_over_cold']:.2f}",
        ]
        for model in report["models"]
        if "startup" in model
    ]
    columns = ("model", "first verdict, cold start, s", "warm start, s", "warm / cold")
    return [
        *([(COLUMNS, works)] if works else []),
        *([(columns, starts)] if starts else []),
    ]


def _row(model: str, work: dict[str, Any]) -> list[str]:
    ours, theirs, floor = work["ours"], work.get("theirs"), work["floor"]
    ratio, agreement = work.get("ratio"), work.get("agreement")
    return [
        model,
        f"({work['name']})",
        f"{ours['tokens_per_second']:,.0f}",
        f"{theirs['tokens_per_second']:,.0f}" if theirs else ABSENT,
        f"{ratio['of_medians']:.2f} ({ratio['pairs_min']:.2f} to {ratio['pairs_max']:.2f})"
        if ratio
        else ABSENT,
        f"{ours['first_seconds']:.1f}; " + (f"{theirs['first_seconds']:.1f}" if theirs else ABSENT),
        f"{floor['measured_over_floor']:.2f} ({floor['decode_over_floor']:.2f})",
        f"{ours['occupancy']:.2f}; " + (f"{theirs['occupancy']:.2f}" if theirs else ABSENT),
        f"{ours['prefill_tokens']:,} / {work['prompt_tokens'] * work['group_size']:,}",
        f"{agreement['tokens']:.1%}" if agreement else ABSENT,
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
