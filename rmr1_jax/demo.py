"""The demo: pairs, traces, a judge trained on both from nothing, and how well it judges."""

import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from jax import monitoring
from rich.console import Console, Group
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rmr1_jax.config import AdvantageConfig, DemoConfig, EvaluateConfig, GrpoConfig, SftConfig
from rmr1_jax.evaluation.record import Record
from rmr1_jax.evaluation.report import write_comparison
from rmr1_jax.evaluation.results import Results
from rmr1_jax.judging import parse
from rmr1_jax.pipeline import run_stage
from rmr1_jax.stages.judge_stage import WHY_NO_VERDICT
from rmr1_jax.toy_task.toy_recipes import (
    toy_evaluate,
    toy_grpo,
    toy_prepare,
    toy_sft,
    toy_synthesize,
)
from rmr1_jax.training.curves import draw_stages
from rmr1_jax.training.metrics import read_metrics

STAGES = "stages.png"
GRPO_STEPS = 60  # of the hundreds that the recipe takes: the demo should end in minutes
JUDGED = 200  # pairs
SHOWN = 4  # judgements shown in full: one of each kind of question

CLOSING = """\
The same stages train a real judge; `rmr1 recipes` lists the recipes of RM-R1. For example
  {command} sft --config=sft_rm_r1:qwen-0.5b --model=MODEL_DIR --data.train=TRACES"""


def run(config: DemoConfig) -> int:
    """Prepare, synthesize, train and evaluate in one directory, and show it; an exit status.

    Rerun it to resume.
    """
    config.check()
    workdir, times = Path(config.workdir), Times()
    pairs, traces = workdir / "pairs", workdir / "traces"
    heading(1, "prepare: labelled pairs about small questions")
    with times.measure("prepare"):
        run_stage(replace(toy_prepare(), output=str(pairs)))
    heading(2, "synthesize: traces in two passes, by a program")
    with times.measure("synthesize"):
        run_stage(replace(toy_synthesize(), input=str(pairs), output=str(traces)))
    heading(3, "sft: a small model learns from random weights to write such traces")
    first = sft_config(config, pairs, traces)
    with times.measure("sft"):
        status = run_stage(first)
    if status:
        return status
    heading(4, "grpo: it learns from whether its own traces judge right")
    second = grpo_config(config, pairs, first.workdir)
    with times.measure("grpo"):
        status = run_stage(second)
    if status:
        return status
    judges = first.workdir, second.workdir
    heading(5, "evaluate: both judges on held-out pairs, each in both orders")
    results = {Path(judge).name: workdir / "evaluation" / Path(judge).name for judge in judges}
    with times.measure("evaluate"):
        for judge, output in zip(judges, results.values(), strict=True):
            run_stage(evaluate_config(second, judge, output, pairs))
    compared = write_comparison(list(results.values()), workdir / "evaluation")
    show(Results(results["grpo"]))
    print(summary(Path(first.workdir), Path(second.workdir)))
    picture = draw_stages(
        [("supervised fine-tuning", first.workdir), ("GRPO", second.workdir)],
        workdir / STAGES,
        "held-out pairs judged right",
    )
    print(f"On one picture: {picture}. Traces with their rewards: {second.workdir}/samples.html.")
    print(f"What they judged, and where they disagree: {compared}.")
    print(f"Seconds: {times}.\n")
    print(CLOSING.format(command=f"{shown(Path(sys.executable))} -m rmr1_jax"))
    return 0


def heading(number: int, text: str) -> None:
    Console(highlight=False).print(Rule(f"{number} of 5 · {text}", align="left"))


def sft_config(config: DemoConfig, pairs: Path, traces: Path) -> SftConfig:
    """The toy recipe of stage 1, in the demo's directory."""
    recipe = toy_sft()
    return replace(
        recipe,
        workdir=str(Path(config.workdir) / "sft"),
        data=replace(recipe.data, train=str(traces)),
        max_steps=config.max_steps or recipe.max_steps,
        validation=replace(recipe.validation, judge=str(pairs)),
    )


def grpo_config(config: DemoConfig, pairs: Path, model: str) -> GrpoConfig:
    """The toy recipe of stage 2, in the demo's directory, and shorter."""
    recipe = toy_grpo()
    return replace(
        recipe,
        workdir=str(Path(config.workdir) / "grpo"),
        model=model,
        data=replace(recipe.data, train=str(pairs)),
        advantage=AdvantageConfig(),  # without dynamic sampling a step takes a third of the time
        max_steps=config.max_steps or GRPO_STEPS,
        validation=replace(recipe.validation, judge=str(pairs)),
    )


def evaluate_config(trained: GrpoConfig, judge: str, output: Path, pairs: Path) -> EvaluateConfig:
    """The toy recipe of evaluation, for one of the judges."""
    return replace(
        toy_evaluate(),
        model=judge,
        output=str(output),
        preferences=str(pairs),
        limit=JUDGED,
        max_new_tokens=trained.validation.max_new_tokens,
        max_num_seqs=64,
    )


def show(results: Results) -> None:
    """A few judgements in full, with what the parser found in each."""
    console = Console(highlight=False)
    records = results.read()["preferences"]  # of each pair, chosen at A and chosen at B
    with results.items_file("preferences").open(encoding="utf-8") as items:
        for number, line in enumerate(itertools.islice(items, SHOWN)):
            record = records[2 * number + number % 2]
            title = f"judgement {number + 1}: {record.id}"
            console.print(judgement_panel(title, json.loads(line), record))


def summary(first: Path, second: Path) -> str:
    """How often the judge was right: before training, after each stage."""
    before, after_sft, after_grpo = (
        [record for record in read_metrics(run) if "validation/verdict_accuracy" in record][place]
        for run, place in ((first, 0), (first, -1), (second, -1))
    )
    lines = ["Held-out pairs, each judged in both orders:"]
    for name, record in (
        ("random weights", before),
        ("after supervised fine-tuning", after_sft),
        ("after GRPO", after_grpo),
    ):
        right, same = record["validation/verdict_accuracy"], record["validation/consistent"]
        lines.append(f"  {name:30} {right:6.1%} right, {same:6.1%} the same winner in both orders")
    return "\n".join(lines)


class Times:
    """Seconds by activity. What jax compiles on the way is counted apart from them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.compiling = 0.0

    def __str__(self) -> str:
        """For example "prepare 9.1, sft 131.0, compiling 20.3"."""
        parts = {**self.seconds, "compiling": self.compiling}
        return ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        start, compiled_before = time.monotonic(), self.compiling
        monitoring.register_event_duration_secs_listener(self._listen)
        try:
            yield
        finally:
            monitoring.unregister_event_duration_listener(self._listen)
            elapsed = time.monotonic() - start
            self.seconds[activity] = elapsed - (self.compiling - compiled_before)

    def _listen(self, event: str, duration_secs: float, **about: str | int) -> None:
        if event.startswith("/jax/core/compile/"):  # tracing, lowering, and XLA or its cache
            self.compiling += duration_secs


def judgement_panel(title: str, item: Mapping[str, Any], record: Record) -> Panel:
    """One pair, the trace about it, what the parser found in that, and verdict against label.

    Args:
      item: its line of the items file.
    """
    names = {"system": "System", "user": "Client", "assistant": "Chatbot"}
    fields = [(names[message["role"]], message["content"]) for message in item["conversation"]]
    label, trace = record.chosen_position, record.trace or ""
    responses = item["chosen"], item["rejected"]
    fields += zip(
        ("Response A", "Response B"), responses[:: 1 if label == "A" else -1], strict=True
    )
    cut = "cut off at " if record.problem == "truncated" else ""
    if record.verdict is None:
        outcome = f"none ({WHY_NO_VERDICT[record.problem]}); the label is {label}"
    else:
        agrees = "as" if record.verdict == label else "against"
        outcome = f"{record.verdict}, {agrees} the label {label}"
    return Panel(
        Group(
            grid(*fields),
            Rule(f"trace, {cut}{record.trace_tokens} tokens", style="dim"),
            Text(trace.strip()),
            Rule("what the parser found", style="dim"),
            grid(*found(trace)),
            Rule(style="dim"),
            grid(("Verdict", outcome)),
        ),
        title=Text(title),
        title_align="left",
    )


def found(trace: str) -> list[tuple[str, str]]:
    """The parts of a trace that the parser finds, by name."""
    parsed = parse(trace)
    parts = {
        "Thinking": parsed.thinking,
        "Type": parsed.type,
        "Rubric": parsed.rubric,
        "Justify": parsed.justify,
        "Solution": parsed.solution,
        "Evaluation": parsed.evaluation,
    }
    present = [(name, text) for name, text in parts.items() if text is not None]
    present += [
        (f"{quote.kind.capitalize()} of {quote.side}", quote.text) for quote in parsed.quotes
    ]
    return present or [("Nothing", "no type, rubric, solution or evaluation")]


def grid(*rows: tuple[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, text in rows:
        table.add_row(Text(name, style="bold"), Text(text))
    return table


def shown(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
