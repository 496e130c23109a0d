"""The results as a table for the terminal or for a Markdown document."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

ABSENT = "–"  # noqa: RUF001
Cell = Callable[[dict[str, Any]], str]

DISTURBED = 0.1  # cores that others may use before the numbers are called unfit


def print_report(report: dict[str, Any], *, markdown: bool) -> None:
    """The tables and what they mean, on the standard output."""
    if markdown:
        print(as_markdown(report))
        return
    console = Console()
    for columns, rows in _tables(report):
        table = Table(*columns)
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
    threads = "1 thread" if settings["threads"] == 1 else f"{settings['threads']} threads"
    found += [
        f"{machine['processor']}, {threads}, fp32; {versions}. Medians of {settings['repeats']} "
        "calls, ours and theirs in turn, after a first call of each; times faster: the ratio of "
        "the medians, in brackets the lowest and highest ratio of a pair of neighbouring calls.",
        "The floor is the time to read the weights once a step and the live KV entries once, at "
        f"{report['bandwidth']['bytes_per_second'] / 1e9:.1f} GB/s "
        f"({report['bandwidth']['method']}). Without prompts: the time of the same prompts with "
        "responses of one token is taken off.",
        "Occupancy: rows that made a token over all rows, over all steps.",
        "Same greedy tokens: those before the first that differs, up to the end token.",
    ]
    if any("theirs" in work for model in report["models"] for work in model["workloads"]):
        found.append(
            f"transformers takes {settings['batch']} rows at a time, in queue order, with its "
            "default attention, sdpa."
        )
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
    """(heads, rows): a table for each model with a column for each work, and one of the starts."""
    tables: list[tuple[Sequence[str], list[list[str]]]] = []
    for model in report["models"]:
        works = model["workloads"]
        if works:
            rows = [[name, *map(cell, works)] for name, cell in MEASURES.items()]
            tables.append(([model["model"], *(f"({work['name']})" for work in works)], rows))
    starts = [
        [
            model["model"],
            f"{model['startup']['cold']:.1f} s",
            f"{model['startup']['warm']:.1f} s",
            f"{model['startup']['warm_over_cold']:.2f}",
        ]
        for model in report["models"]
        if "startup" in model
    ]
    if starts:
        tables.append((["first verdict", "cold start", "warm start", "warm / cold"], starts))
    return tables


def _theirs(form: str, key: str) -> Cell:
    return lambda work: format(work["theirs"][key], form) if "theirs" in work else ABSENT


def _ratio(work: dict[str, Any]) -> str:
    if "ratio" not in work:
        return ABSENT
    ratio = work["ratio"]
    return f"{ratio['of_medians']:.2f} ({ratio['pairs_min']:.2f} to {ratio['pairs_max']:.2f})"


MEASURES: dict[str, Cell] = {
    "rmr1_jax, tokens/s": lambda work: f"{work['ours']['tokens_per_second']:,.0f}",
    "transformers, tokens/s": _theirs(",.0f", "tokens_per_second"),
    "times faster (pairs)": _ratio,
    "time / floor": lambda work: f"{work['floor']['measured_over_floor']:.2f}",
    "without prompts": lambda work: f"{work['floor']['decode_over_floor']:.2f}",
    "occupancy, rmr1_jax": lambda work: f"{work['ours']['occupancy']:.2f}",
    "occupancy, transformers": _theirs(".2f", "occupancy"),
    "prompt tokens x samples": lambda work: f"{work['prompt_tokens'] * work['group_size']:,}",
    "computed, rmr1_jax": lambda work: f"{work['ours']['prefill_tokens']:,}",
    "computed, transformers": _theirs(",", "prefill_tokens"),
    "first call, rmr1_jax": lambda work: f"{work['ours']['first_seconds']:.1f} s",
    "first call, transformers": lambda work: (
        _theirs(".1f", "first_seconds")(work) + (" s" if "theirs" in work else "")
    ),
    "same greedy tokens": lambda work: (
        f"{work['agreement']['tokens']:.1%}" if "agreement" in work else ABSENT
    ),
}


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
