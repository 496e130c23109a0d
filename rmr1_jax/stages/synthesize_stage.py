"""`--stage=synthesize`: labelled pairs in, traces of a teacher out, in the layout for SFT.

The output directory:
  traces.jsonl      what is accepted, one example a line, in the order of the input
  rejects.jsonl     what is not, with the reason and the text
  report.json       all counts
  replies.jsonl     every reply ever given, appended to at once: what a run that goes on reads.
                    The three above follow from it; a run that comes to no end leaves them alone.
  input.rejects.jsonl, batch.rejects.jsonl   lines of the input and of result files that are none
"""

import json
import sys
from pathlib import Path

from rich.console import Console

from rmr1_jax.config import SynthesizeConfig
from rmr1_jax.data.example import Example
from rmr1_jax.data.preference_file import RejectsFile, read_preferences
from rmr1_jax.data.preference_store import ExampleStore
from rmr1_jax.io.atomic_write import atomic_write
from rmr1_jax.io.record_log import GO_ON, RecordLog
from rmr1_jax.judging import JudgePrompt, load_prompt
from rmr1_jax.synthesis.make_teacher import (
    PASSES,
    teacher_config,
    teacher_formats,
    teacher_settings,
)
from rmr1_jax.synthesis.passes import ask_directly, read_batches, write_batches
from rmr1_jax.synthesis.reply_cache import ReplyCache
from rmr1_jax.synthesis.synthesis_progress import report_table
from rmr1_jax.synthesis.two_pass import Examples, Report, Synthesis, check_examples


def run(config: SynthesizeConfig) -> int:
    """Returns the exit status: 1 if anything was refused, or the run stopped early, else 0."""
    report = synthesize(config)
    return 1 if report.refused or report.stopped or report.input_rejects else 0


def synthesize(config: SynthesizeConfig) -> Report:
    """Distil, write the files of the output directory, print the report and give it back.

    Raises UserError.
    """
    config.check()
    formats, prompt, output = teacher_formats(config), judge_prompt(config), Path(config.output)
    settings = run_settings(config, prompt)
    with RecordLog(output / "replies.jsonl") as log:
        log.check_settings(settings, even_if_empty=any(output.glob("pass[12].*.jsonl")))
        rejects = RejectsFile(output / "input.rejects.jsonl")
        rejects.path.unlink(missing_ok=True)
        examples = load_examples(config, rejects)
        if log.count == 0:
            log.write_run_info({"settings": settings})
        sections = {number: teacher_config(config, number) for number in PASSES}
        synthesis = Synthesis(
            examples,
            prompt,
            ReplyCache(log),
            teachers={
                n: list(teacher_settings(section).values()) for n, section in sections.items()
            },
            names={n: section.model or section.kind for n, section in sections.items()},
        )
        proceed = {"": ask_directly, "write": write_batches, "read": read_batches}[config.batch]
        try:
            stopped = proceed(config, synthesis, formats)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{log.count} replies are in {log.path}; {GO_ON}") from None
        report = synthesis.report(stopped=stopped, input_rejects=rejects.count)
        synthesis.write(output / "traces.jsonl", output / "rejects.jsonl")
        write_report(report, output / "report.json")
    Console().print(report_table(report))
    print(f"{report.traces} traces are in {output / 'traces.jsonl'}")
    for count, path in (
        (report.refused, output / "rejects.jsonl"),
        (report.input_rejects, rejects.path),
    ):
        if count:
            print(f"{count} rejected: see {path}", file=sys.stderr)
    if stopped:
        print(stopped, file=sys.stderr)
    return report


def write_report(report: Report, path: Path) -> None:
    """Write the counts as JSON, whole or not at all."""
    text = json.dumps(report.record(), indent=2, ensure_ascii=False)
    atomic_write(path, text + "\n")


def load_examples(config: SynthesizeConfig, rejects: RejectsFile) -> Examples:
    """The labelled examples of the input, the first `limit` of them. Raises UserError."""
    path = config.input
    if Path(path).is_dir():
        examples: Examples = ExampleStore(path).split(config.split)
        where = f"{path}, split {config.split}"
    else:
        where = path
        examples = [
            Example(id=pair.id, source=Path(path).stem, label=pair.label, preference=pair)
            for pair in read_preferences(path, rejects=rejects)
        ]
    if config.limit is not None and config.limit < len(examples):
        examples = [examples[index] for index in range(config.limit)]
    check_examples(examples, where)
    return examples


def judge_prompt(config: SynthesizeConfig) -> JudgePrompt:
    """The prompt that traces are written for. Raises UserError."""
    if not config.prompt and "program" in (config.teacher1.kind, config.teacher2.kind):
        from rmr1_jax.toy_task import TOY_PROMPT

        return TOY_PROMPT
    return load_prompt(config.prompt or "chain_of_rubrics")


def run_settings(config: SynthesizeConfig, prompt: JudgePrompt) -> dict[str, object]:
    """What makes two runs write the same traces; limits, caps and concurrency do not matter."""
    return {
        "input": str(Path(config.input).resolve()),
        "split": config.split,
        "prompt_sha256": prompt.sha256,
    } | {
        f"teacher{number}.{name}": value
        for number in PASSES
        for name, value in teacher_settings(teacher_config(config, number)).items()
    }
