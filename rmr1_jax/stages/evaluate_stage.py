"""`--stage=evaluate`: benchmarks in; a record of every judgement, scores and a report out."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from rmr1_jax.config import EvaluateConfig
from rmr1_jax.data.preference_file import RejectsFile
from rmr1_jax.distributed.hosts import (
    assert_same_on_all_hosts,
    broadcast_from_primary,
    is_first,
    log_primary,
)
from rmr1_jax.distributed.rendezvous import is_one_of_several
from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmark import Loaded
from rmr1_jax.evaluation.benchmarks import BENCHMARKS
from rmr1_jax.evaluation.import_logs import import_logs
from rmr1_jax.evaluation.judging_progress import JudgingProgress
from rmr1_jax.evaluation.report import write_comparison, write_report
from rmr1_jax.evaluation.results import Results, item_to_json
from rmr1_jax.evaluation.runner import Task, judge_tasks, parse_order, positions, spread, tasks_of
from rmr1_jax.evaluation.scores import score_run
from rmr1_jax.io.atomic_write import atomic_write
from rmr1_jax.stages.judge_stage import judge_settings, load_judge

if TYPE_CHECKING:
    from rmr1_jax.sampling.judge import Judge

# A trace that has less room than this hardly comes to a verdict.
LITTLE_ROOM = 512
LISTED = 8  # of what is missing or wrong, on the terminal


def run(config: EvaluateConfig) -> int:
    """Returns the exit status: 1 if rows were rejected or prompts were too long, else 0."""
    config.check()
    alone = config.compare or config.import_logs or config.score_only
    if alone and is_one_of_several() and not is_first():
        return 0  # nothing is judged: there is work for one process
    if config.compare:
        page = write_comparison(
            [Path(path) for path in config.compare],
            Path(config.output),
            samples=config.report_samples,
        )
        print(f"comparison: {page}")
        return 0
    if config.import_logs:
        return import_published(config)
    if config.score_only:
        score(config)
        return 0
    return evaluate(config)


def evaluate(config: EvaluateConfig) -> int:
    """Judge what is not judged yet, then score all."""
    order, results = parse_order(config.order), Results(config.output)
    loaded, rejected = load_benchmarks(config, results)
    tasks = {}
    for name, benchmark in loaded.items():
        placed = dict(zip(benchmark.items, positions(benchmark.items, order), strict=True))
        items = spread(benchmark.items, config.limit)
        tasks[name] = tasks_of(items, [placed[item] for item in items])
    begin(config, results, loaded, tasks)
    judge = load_judge(config)
    note_prompt(results, judge)
    lengths = {name: prompt_lengths(judge, some) for name, some in tasks.items()}
    too_long = say_what_does_not_fit(judge, lengths, min(LITTLE_ROOM, config.max_new_tokens))
    for name, some in tasks.items():
        judge_benchmark(judge, some, lengths[name], name, config, results)
    if is_first():
        score(config)
    return 1 if rejected or too_long else 0


def load_benchmarks(config: EvaluateConfig, results: Results) -> tuple[dict[str, Loaded], int]:
    """All benchmarks that are asked for, and how many of their rows were rejected."""
    loaded, rejected = {}, 0
    for name in config.chosen:
        rejects = RejectsFile(results.rejects_file(name) if is_first() else os.devnull)
        if is_first():
            rejects.path.parent.mkdir(parents=True, exist_ok=True)
            rejects.path.unlink(missing_ok=True)
        loaded[name] = BENCHMARKS[name].load(getattr(config, name), rejects)
        rejected += rejects.count
        log_primary(f"{name}: {len(loaded[name].items):,} pairs")
        missing = loaded[name].missing
        for line in missing[:LISTED]:
            log_primary(f"  missing: {line}")
        if len(missing) > LISTED:
            log_primary(f"  missing: {len(missing) - LISTED} parts more")
        if missing and config.order == "published" and name != "preferences":
            log_primary(
                "  which response is A is drawn for this part by itself, not as in published runs"
            )
        if rejects.count:
            log_primary(f"  {rejects.count} rows cannot be judged: see {rejects.path}")
    return loaded, rejected


def begin(
    config: EvaluateConfig,
    results: Results,
    loaded: Mapping[str, Loaded],
    tasks: Mapping[str, Sequence[Task]],
) -> None:
    """Enter the directory of the results; what is there must be of the same run."""
    settings = judge_settings(config) | {
        name: getattr(config, name) for name in ("order", "budget", "limit")
    }
    sources = {}
    for name, some in tasks.items():
        missing, there = list(loaded[name].missing), len(loaded[name].items)
        asked = len(dict.fromkeys(task.item for task in some))
        if asked < there:
            missing.append(f"--limit: {asked:,} of the {there:,} pairs that are there")
        sources[name] = {"items": fingerprint(some), "missing": missing}

    assert_same_on_all_hosts(json.dumps(sources).encode(), about="the benchmarks")

    def enter() -> None:
        results.begin(settings, sources)
        for name, some in tasks.items():
            if not results.items_file(name).exists():
                results.write_items(name, dict.fromkeys(task.item for task in some))

    broadcast_from_primary(enter, about=config.output)


def note_prompt(results: Results, judge: "Judge") -> None:
    prompt = {"prompt_sha256": judge.prompt.sha256, "prompt_source": judge.prompt_source}
    broadcast_from_primary(lambda: results.note(**prompt), about=results.output)


def prompt_lengths(judge: "Judge", tasks: Sequence[Task]) -> list[int]:
    """Tokens of each task's prompt."""
    if tasks:
        log_primary(f"{tasks[0].item.benchmark}: measuring {len(tasks):,} prompts")
    return [len(judge.prompt_tokens(task.pair)) for task in tasks]


def say_what_does_not_fit(judge: "Judge", lengths: Mapping[str, Sequence[int]], little: int) -> int:
    """Before anything is judged: how many prompts the context is too short for, and how many leave
    fewer than `little` tokens for a trace."""
    total = 0
    for name, some in lengths.items():
        too_long = sum(length >= judge.max_context for length in some)
        tight = sum(length + little > judge.max_context for length in some) - too_long
        total += too_long
        if too_long:
            log_primary(
                f"{name}: {too_long} of {len(some)} prompts do not fit the context of "
                f"{judge.max_context:,} tokens (the longest has {max(some):,}) and count as wrong"
            )
        if tight:
            log_primary(f"{name}: {tight} prompts leave fewer than {little} tokens for a trace")
    return total


def judge_benchmark(
    judge: "Judge",
    tasks: Sequence[Task],
    lengths: Sequence[int],
    name: str,
    config: EvaluateConfig,
    results: Results,
) -> None:
    """Judge what is not judged yet; then put the records in the order of the data set."""
    rule, votes = config.rule, config.votes
    keys = [key for task in tasks for key in task.keys(votes)]

    def finished() -> bool:
        there = results.records_file(name).exists()
        if there:
            results.check_finished(name, keys)
        return there

    if broadcast_from_primary(finished, about=results.output):
        log_primary(f"{name}: is judged already")
        return
    with results.log(name) if is_first() else nullcontext() as log:

        def unjudged() -> list[int]:
            done = results.judged(log, rule) if log else set()
            return [n for n, task in enumerate(tasks) if not done.issuperset(task.keys(votes))]

        rest = broadcast_from_primary(unjudged, about=results.output)
        done = len(tasks) - len(rest)
        if done:
            log_primary(f"{name}: {done} of {len(tasks)} judgements are there; going on")
        with JudgingProgress(
            total=len(tasks), done=done, console=Console(stderr=True, quiet=not is_first())
        ) as progress:
            for records in judge_tasks(
                judge,
                [tasks[number] for number in rest],
                [lengths[number] for number in rest],
                config,
                votes=votes,
                budget=config.budget,
                rule=rule,
                on_progress=lambda now: progress.tokens_written(now.tokens),
            ):
                if log:
                    for record in records:
                        log.append(record.to_json())
                progress.pair_done()
    if is_first():
        results.finish(name, keys, rule)


def score(config: EvaluateConfig) -> dict[str, Any]:
    """Score the records that are there, write scores and report, and say both."""
    results, rule = Results(config.output), config.rule
    records = results.read(rule)
    unknown = [name for name in records if name not in BENCHMARKS]
    if unknown:
        raise UserError(
            f"{results.records_file(unknown[0])}: is of no benchmark known here; "
            f"there are {', '.join(BENCHMARKS)}"
        )
    scores = score_run(records, rule=rule, missing=missing_parts(results))
    file = results.write_scores(scores)
    page = write_report(results.output, samples=config.report_samples)
    Console().print(summary(scores))
    print(f"scores: {file}\nreport: {page}")
    return scores


def missing_parts(results: Results) -> dict[str, list[str]]:
    """What the benchmarks had not when they were judged here; unknown of the records of others."""
    benchmarks = (results.run_info() or {}).get("benchmarks", {})
    return {name: about["missing"] for name, about in benchmarks.items()}


def import_published(config: EvaluateConfig) -> int:
    """Published logs as records and items, scored. Returns 1 if something could not be read."""
    results = Results(config.output)
    if results.output.exists() and any(results.output.iterdir()):
        raise UserError(f"--output={config.output}: is not empty; choose another directory")
    imported = import_logs(Path(config.import_logs))
    if not imported.records:
        raise UserError(
            f"--import_logs={config.import_logs}: holds no judgements; "
            + "; ".join(imported.problems[:LISTED])
        )
    for name, records in imported.records.items():
        results.write_records(name, records)
        results.write_items(name, imported.items[name])
        print(f"{name}: {len(records):,} judgements", file=sys.stderr)
    if imported.problems:
        file = atomic_write(
            results.output / "rejects" / "import.txt", "\n".join(imported.problems) + "\n"
        )
        some = "\n".join(f"  {problem}" for problem in imported.problems[:LISTED])
        print(f"{some}\n  {len(imported.problems)} problems in all: see {file}", file=sys.stderr)
    score(config)
    return 1 if imported.problems else 0


def fingerprint(tasks: Sequence[Task]) -> str:
    """SHA-256 over what is asked, in order."""
    digest = hashlib.sha256()
    for task in tasks:
        line = [task.item.benchmark, task.chosen_position, item_to_json(task.item)]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


def summary(scores: Mapping[str, Any]) -> Table:
    """The headline scores, in points of 100."""
    table = Table("benchmark", "score", "points", "pairs", box=None)
    for title, path in HEADLINES:
        score: Any = scores
        for part in path.split("."):
            score = (score or {}).get(part)
        if not score or score["value"] is None:
            continue
        error = "" if score["stderr"] is None else f" ± {100 * score['stderr']:.1f}"
        note = "" if score["complete"] else " (incomplete)"
        benchmark, _, name = title.partition(": ")
        table.add_row(
            benchmark, name, f"{100 * score['value']:.1f}{error}{note}", f"{score['n']:,}"
        )
    return table


HEADLINES = (
    ("RewardBench: overall", "rewardbench.overall"),
    ("RM-Bench: as published", "rm_bench.as_published.total"),
    ("RM-Bench: corrected", "rm_bench.corrected.total"),
    ("RMB: overall", "rmb.overall"),
    ("your pairs: overall", "preferences.overall"),
    ("average: as published", "average"),
    ("average: corrected", "average_corrected"),
)
