"""The two passes of a distillation, asked directly or through batch files.

Both return why they stopped early, or an empty text.
"""

import asyncio
from pathlib import Path

from rmr1_jax.config import SynthesizeConfig
from rmr1_jax.data.preference_file import RejectsFile
from rmr1_jax.errors import UserError
from rmr1_jax.synthesis.batch_files import BatchFiles, read_results, under_way, write_requests
from rmr1_jax.synthesis.budget import Budget, RateLimit
from rmr1_jax.synthesis.make_teacher import PASSES, Formats, make_teacher, teacher_config
from rmr1_jax.synthesis.synthesis_progress import SynthesisProgress
from rmr1_jax.synthesis.teacher_client import Answer, TeacherClient, ask_all
from rmr1_jax.synthesis.teachers import Request, Teacher
from rmr1_jax.synthesis.two_pass import Synthesis

BACKOFF = 1.0  # seconds before a second try; the tests do not want to wait


def ask_directly(config: SynthesizeConfig, synthesis: Synthesis, formats: Formats) -> str:
    """Ask teacher 1 all that is open, then teacher 2 what teacher 1 got wrong. Raises UserError."""
    for number, format in formats.items():
        if format is None:
            continue
        files = BatchFiles(Path(config.output), number, format)
        if waiting := under_way(files, synthesis.replies):
            raise UserError(
                f"{files.directory / files.stem}*.jsonl: {len(waiting)} requests have no result "
                "yet, and asking directly would ask them twice; read their results with "
                "--batch=read, or delete the files if they were never sent"
            )
    return asyncio.run(_ask_both_passes(config, synthesis, formats))


async def _ask_both_passes(config: SynthesizeConfig, synthesis: Synthesis, formats: Formats) -> str:
    budget = _budget(config, synthesis)
    teachers = {number: make_teacher(config, number, formats[number]) for number in PASSES}
    try:
        # Teacher 2 before teacher 1 is paid, although only the rejected ones will need it.
        first, second = (_count_open(synthesis, number) for number in PASSES)
        for number in PASSES:
            if first or (number == 2 and second):
                await teachers[number].check()
        for number in PASSES:
            if not await _ask_pass(config, synthesis, number, teachers[number], budget):
                return _out_of_budget(config, budget)
            await teachers[number].close()  # a local model makes room for the next
    finally:
        for teacher in teachers.values():
            await teacher.close()
    return ""


async def _ask_pass(
    config: SynthesizeConfig, synthesis: Synthesis, number: int, teacher: Teacher, budget: Budget
) -> bool:
    total, options = _count_open(synthesis, number), teacher_config(config, number)
    if total == 0:
        return True
    asker = TeacherClient(
        teacher,
        budget=budget,
        limit=RateLimit(options.requests_per_minute, options.tokens_per_minute),
        attempts=options.attempts,
        backoff=BACKOFF,
    )
    replies = synthesis.replies
    with SynthesisProgress(number=number, teacher=teacher.name, total=total) as progress:

        def keep(request: Request, answer: Answer) -> None:
            replies.add(request, number, teacher.name, answer)
            reply = answer.reply
            progress.answered(
                kept=reply is not None and synthesis.problem(number, request, reply) is None,
                failed=reply is None,
                spend=replies.spend[number],
            )

        return await ask_all(asker, synthesis.requests(number), keep)


def write_batches(config: SynthesizeConfig, synthesis: Synthesis, formats: Formats) -> str:
    """Write what is open and not under way as request files."""
    budget = _budget(config, synthesis)
    for number, format in formats.items():
        if format is None:
            if count := _count_open(synthesis, number):
                print(
                    f"pass {number}: {count} requests are open, and teacher{number} has no batch "
                    "API; run without --batch to ask it directly"
                )
            continue
        files = BatchFiles(Path(config.output), number, format)
        written = write_requests(files, synthesis, budget)
        for path in written.files:
            print(f"pass {number}: wrote {path}")
        if waiting := len(under_way(files, synthesis.replies)):
            print(
                f"pass {number}: {waiting} requests wait for results ({written.requests} new); put "
                f"those into {files.directory / files.stem}.results.jsonl (.results-NAME.jsonl "
                "where there are several) and run with --batch=read"
            )
        if not written.within_budget:
            return _out_of_budget(config, budget)
    return ""


def read_batches(config: SynthesizeConfig, synthesis: Synthesis, formats: Formats) -> str:
    """Take what result files hold into the log. Raises UserError where there are none."""
    output = Path(config.output)
    rejects = RejectsFile(output / "batch.rejects.jsonl")
    rejects.path.unlink(missing_ok=True)
    found, stems = 0, []
    for number, format in formats.items():
        if format is None:
            continue
        files = BatchFiles(output, number, format)
        stems.append(files.stem)
        read = read_results(files, synthesis, format.model, rejects)
        found += len(read.files)
        if read.files:
            print(
                f"pass {number}: {read.replies} new replies, {read.errors} errors (the next "
                f"--batch=write asks them again), {read.known} known before, {read.broken} lines "
                f"that are no results of ours; from {len(read.files)} result files"
            )
    if not found:
        names = " or ".join(f"{stem}.results.jsonl" for stem in stems)
        raise UserError(f"{output}: there is no result file; put it there as {names}")
    if rejects.count:
        return f"{rejects.count} lines of result files could not be used: see {rejects.path}"
    return ""


def _count_open(synthesis: Synthesis, number: int) -> int:
    return sum(1 for _ in synthesis.requests(number))


def _budget(config: SynthesizeConfig, synthesis: Synthesis) -> Budget:
    spend = synthesis.replies.spend.values()
    return Budget(
        config.max_requests,
        config.max_tokens,
        requests=sum(one.requests for one in spend),
        tokens=sum(one.tokens for one in spend),
    )


def _out_of_budget(config: SynthesizeConfig, budget: Budget) -> str:
    caps = [
        f"--{name}={cap}"
        for name in ("max_requests", "max_tokens")
        if (cap := getattr(config, name)) is not None
    ]
    return (
        f"stopped before {' or '.join(caps)} would be exceeded: {budget.requests:,} requests and "
        f"{budget.tokens:,} tokens are spent or under way; raise the cap and run the same command "
        "again: nothing is asked twice"
    )
