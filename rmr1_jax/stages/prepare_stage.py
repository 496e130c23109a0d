"""`--stage=prepare`: sources of preferences in; train, validation and distillation splits out.

Two passes over the sources. The first notes 23 bytes about each record in `work/`, and 512 more
where near duplicates are looked for; from them it is decided what is kept, where, and in which
order of responses; the second writes it. Memory holds some 200 bytes a record while that is
decided, and never the records. A run that was interrupted goes on in either pass.
"""

import contextlib
import dataclasses
import fcntl
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from rmr1_jax.config import PrepareConfig, Source
from rmr1_jax.data.decontamination import Benchmarks
from rmr1_jax.data.example import Example
from rmr1_jax.data.mixture import write_mixture
from rmr1_jax.data.preference_file import RejectsFile
from rmr1_jax.data.preference_store import StoreWriter, is_complete
from rmr1_jax.data.prepare_report import Report, RowProgress, make_report
from rmr1_jax.data.scan import RowScanner, survey
from rmr1_jax.data.sources import RowSource, open_source
from rmr1_jax.data.splits import Choices, EmptyMixture, make_plan
from rmr1_jax.errors import UserError
from rmr1_jax.io.run_directory import resume_or_refuse, write_settings
from rmr1_jax.judging import Message, Preference, RecordError, load_prompt

NAME = "preferences"  # of the data set, as TFDS calls it
SETTINGS, REPORT, REJECTS, WORK = "prepare.json", "report.json", "rejects.jsonl", "work"
# What only the second pass uses, and may change as long as that has not begun.
LATE = ("balance", "validation", "distillation", "exact_duplicates", "shard_records", "count")


def run(config: PrepareConfig) -> int:
    """Returns the exit status: 1 if a record was rejected, else 0."""
    report = prepare(config)
    return 1 if report.rejected else 0


def prepare(config: PrepareConfig) -> Report:
    """Prepare the mixture, or what is still missing of it; prints and returns the counts.

    Raises UserError before the output is touched where a source cannot be used or the output holds
    something else.
    """
    config.check()
    output = Path(config.output)
    settings = run_settings(config)
    check_output(output, settings)
    if is_complete(output):
        shutil.rmtree(output / WORK, ignore_errors=True)  # if killed just before that
        report = Report.load(output / REPORT)
        print(f"{output} is prepared already", file=sys.stderr)
    else:
        sources, against = open_sources(config), _names(config.against)
        rejects = RejectsFile(output / REJECTS)
        examiner = RowScanner(
            sources,
            config.seed,
            rejects,
            signatures=config.near_duplicates > 0,
            benchmarks=Benchmarks(against, config.ngram) if against else None,
            length=prompt_length(config) if config.tokenizer else None,
            max_tokens=config.max_prompt_tokens,
        )
        with begun(output, settings):
            report = make_mixture(config, output, examiner, settings)
    # In a file there is room for every column.
    report.show(Console() if sys.stdout.isatty() else Console(width=140))
    print(f"{report.kept:,} records are in {output}")
    if report.rejected:
        were = "record was" if report.rejected == 1 else "records were"
        print(f"{report.rejected:,} {were} rejected: see {output / REJECTS}", file=sys.stderr)
    return report


def make_mixture(
    config: PrepareConfig, output: Path, examiner: RowScanner, settings: dict[str, object]
) -> Report:
    """Survey, plan and write."""
    sources = examiner.sources
    with RowProgress("surveyed", None) as progress:
        facts = survey(examiner, output / WORK / "facts", progress)
    plan = make_plan(facts, choices(config))
    report = make_report(sources, facts, plan)
    report.save(output / REPORT)
    with (
        StoreWriter(output, NAME, config.shard_records) as writer,
        RowProgress("written", plan.kept) as progress,
    ):
        write_mixture(sources, facts, plan, writer, progress)
        writer.finish({"settings": settings, "report": dataclasses.asdict(report)})
    return report


def open_sources(config: PrepareConfig) -> list[RowSource]:
    """The sources of the configuration, each with a label of its own. Raises UserError."""
    opened = []
    seen: Counter[str] = Counter()
    for source in listed_sources(config):
        row_source = open_source(
            source.name,
            split=source.split,
            exclude=source.exclude,
            fields=source.fields,
            toy_task=(config.toy_task, config.seed),
        )
        seen[row_source.label] += 1
        if seen[row_source.label] > 1:
            row_source = replace(row_source, label=f"{row_source.label}#{seen[row_source.label]}")
        opened.append(row_source)
    return opened


def listed_sources(config: PrepareConfig) -> Sequence[Source]:
    """What the recipe lists, else what --input names, else the toy task."""
    return config.sources or [Source(name) for name in _names(config.input) or ["toy_task"]]


def choices(config: PrepareConfig) -> Choices:
    return Choices(
        balance=config.balance,
        validation=config.validation,
        distillation=config.distillation,
        exact_duplicates=config.exact_duplicates,
        near_duplicates=config.near_duplicates,
        counts={
            index: source.count
            for index, source in enumerate(listed_sources(config))
            if source.count is not None
        },
    )


def prompt_length(config: PrepareConfig) -> Callable[[Example], int]:
    """A function: example -> tokens of its prompt in the chat template. Raises UserError."""
    from jinja2.exceptions import TemplateError

    from rmr1_jax.data.tokenize import check_template
    from rmr1_jax.models.checkpoint import load_tokenizer

    prompt = load_prompt(config.prompt or "chain_of_rubrics")
    tokenizer, _ = load_tokenizer(config.tokenizer)
    check_template(tokenizer, prompt.messages(Preference("", (Message("user", "?"),), "a", "b")))

    def length(example: Example) -> int:
        try:
            text = tokenizer.apply_chat_template(
                example.messages(prompt), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise RecordError("prompt", f"is refused by the chat template ({error})") from error
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return length


def run_settings(config: PrepareConfig) -> dict[str, object]:
    """What makes two runs write the same, as one flat table."""
    settings = {name: value for name, value in vars(config).items() if name != "output"}
    del settings["sources"], settings["input"]
    for number, source in enumerate(listed_sources(config), start=1):
        for name, value in dataclasses.asdict(source).items():
            settings[f"source {number}: {name}"] = value
    flat: dict[str, object] = json.loads(json.dumps(settings))
    return flat


def check_output(output: Path, settings: dict[str, object]) -> None:
    """Refuse a directory that holds anything but the same preparation. Raises UserError."""
    file = output / SETTINGS
    others = output.is_dir() and any(entry.name != REJECTS for entry in output.iterdir())
    if not file.exists() and (others or output.is_file()):
        raise UserError(f"{output}: holds something else (no {SETTINGS}); choose another --output")
    writing = (output / NAME).exists()
    late = [] if writing else [name for name in settings if name.split()[-1] in LATE]
    resume_or_refuse(file, settings, whole=True, may_change=late)


@contextlib.contextmanager
def begun(output: Path, settings: dict[str, object]) -> Iterator[None]:
    """The output, locked for this process, with its settings in it and a directory for notes.

    The notes are removed at the end, not after an error: the next run goes on with them. Those of
    an empty mixture are of no use, and would only hold the next run to the same settings.
    """
    if not (output / SETTINGS).exists():
        (output / REJECTS).unlink(missing_ok=True)
    work = output / WORK
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{output}: another run is writing it; wait for that run or choose another --output"
            ) from error
        write_settings(output / SETTINGS, settings)
        try:
            yield
        except EmptyMixture:
            (output / SETTINGS).unlink()
            shutil.rmtree(work)
            raise
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"the same command goes on in {output}") from None
        shutil.rmtree(work)


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]
