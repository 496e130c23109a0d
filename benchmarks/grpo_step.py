"""One GRPO step beside TRL's GRPOTrainer and Tunix's GRPOLearner, on the CPU.

A step is rollout, rewards, reference log-probabilities and one update. All take the same weights,
prompts and forced response lengths in fp32 with the same threads, each in a process and, the peers,
in an environment of its own, which `python -m benchmarks.grpo_step --prepare` makes. Steps are
taken in turn: ours, TRL, ours, Tunix, and again. Each peer may take its groups one at a time or all
at once, whichever is faster for it; nobody computes activations twice.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decode import Log, as_huggingface, write
from benchmarks.grpo_peers.conversation import PHASES, Job
from benchmarks.grpo_peers.engines import NAMES, PEERS, Engine, Step, interpreter, prepare
from benchmarks.machine import OtherLoad, cores, limit_threads, processor
from benchmarks.measure import ratios
from benchmarks.prompts import prompt_maker
from benchmarks.report import ABSENT, DISTURBED
from benchmarks.workloads import log_normal_lengths
from rmr1_jax.errors import UserError
from rmr1_jax.models.checkpoint import load_config, load_tokenizer

SPREAD = 0.1  # the shortest and longest prompt differ by so much from the middle
PAUSE = 0.5  # seconds in which the threads of the engine before fall asleep


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the JSON, print the table. Returns the exit status."""
    options = parse(arguments)
    try:
        if options.prepare:
            for name in options.only:
                if name in PEERS:
                    prepare(name)
            return 0
        limit_threads(options.threads)
        report = run(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(report))
    print(f"written to {options.output}", file=sys.stderr)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grpo_step", description=(__doc__ or "").split("\n\n")[0]
    )
    add = parser.add_argument
    add("--prepare", action="store_true", help="make the peers' environments (several GB) and end")
    add("--model", type=Path, help="a checkpoint with a tokenizer; for Tunix of type llama")
    add("--only", default=",".join(NAMES), help="some of %(default)s")
    add("--prompts", default=4, type=int, help="a step (%(default)s)")
    add("--prompt_tokens", default=256, type=int, help="of a prompt, in the mean (%(default)s)")
    add("--samples", default=7, type=int, help="of each prompt (%(default)s)")
    add("--max_new_tokens", default=128, type=int, help="of the longest sample (%(default)s)")
    add("--repeats", default=3, type=int, help="measured pairs with each peer (%(default)s)")
    add("--threads", default=cores(), type=int, help="of every engine (all cores: %(default)s)")
    add("--output", default="out/grpo_step.json", type=Path, help="JSON (%(default)s)")
    options = parser.parse_args(arguments)
    options.only = [name for name in options.only.split(",") if name]
    if unknown := set(options.only) - set(NAMES):
        parser.error(f"--only: no such engine: {', '.join(sorted(unknown))}")
    if not options.only:
        parser.error("--only names no engine")
    if not options.prepare and options.model is None:
        parser.error("--model=CHECKPOINT is needed")
    if not 1 <= options.threads <= cores():
        parser.error(f"--threads={options.threads}: this process may use 1 to {cores()}")
    for name, least in (
        ("prompts", 1),
        ("prompt_tokens", 16),
        ("samples", 2),
        ("max_new_tokens", 8),
        ("repeats", 1),
    ):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}")
    if options.prompts * options.samples < 4:
        parser.error("--prompts x --samples must be at least 4, for lengths that differ")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for, as it is written to `options.output`."""
    say = Log()
    for name in options.only:
        interpreter(name)
    job = make_job(as_huggingface(options.model), options)
    engines: dict[str, Engine] = {}
    first: dict[str, float] = {}
    with ExitStack() as stack:

        def start(name: str, size: int) -> Engine:
            return stack.enter_context(closing(Engine(name, replace(job, micro_prompts=size))))

        for name in options.only:
            sizes = sorted({1, len(job.prompts)}) if name in PEERS else [1]
            engines[name], first[name] = faster(partial(start, name), sizes, say)
        measured, pairs, load = measure(engines, options.repeats, say)
    report = {
        "machine": {"processor": processor(), "cores": cores()},
        "versions": {name: engine.versions for name, engine in engines.items()},
        "settings": {"model": options.model.name, "repeats": options.repeats},
        "job": asdict(replace(job, model=options.model.name)),
        "other_load": load,
        "engines": {
            name: summary(job, steps)
            | {"first_seconds": first[name], "micro_prompts": engines[name].job.micro_prompts}
            for name, steps in measured.items()
        },
        "ratios": {peer: ratios(*both) for peer, both in pairs.items()},
    }
    write(report, options.output)
    return report


def make_job(directory: Path, options: argparse.Namespace) -> Job:
    """Prompts of real text, a little longer and shorter than asked for, and log-normal lengths
    whose mean is half of the longest."""
    config = load_config(str(directory))
    tokenizer, stop_ids = load_tokenizer(str(directory))
    if tokenizer.eos_token_id is None:
        raise UserError(f"{directory} has no tokenizer with an end token, which TRL needs")
    N, G = options.prompts, options.samples
    share = np.linspace(1 - SPREAD, 1 + SPREAD, N) if N > 1 else np.ones(1)
    widths = np.round(share * options.prompt_tokens).astype(int).tolist()
    longest = options.max_new_tokens
    prompts = prompt_maker(directory, config.vocab_size)(widths, 8)
    ends = {*stop_ids, tokenizer.eos_token_id}
    # Tunix tells padding by its id alone, which may not stand for anything else.
    pad = max(set(range(config.vocab_size)) - ends.union(*prompts))
    lengths = log_normal_lengths(N * G, mean=longest // 2, longest=longest, seed=7)
    return Job(
        model=str(directory.resolve()),
        prompts=prompts,
        lengths=np.reshape(lengths, (N, G)).tolist(),
        max_new_tokens=longest,
        stop_id=tokenizer.eos_token_id,
        banned_ids=sorted({*ends, pad}),
        pad_id=pad,
        micro_prompts=1,
        threads=options.threads,
    )


def faster(make: Callable[[int], Engine], sizes: Sequence[int], say: Log) -> tuple[Engine, float]:
    """The engine with the groups at a time that suit it, warm, and the seconds of its first step.

    The others are closed.
    """
    best: tuple[float, float, Engine] | None = None
    for size in sizes:
        engine = make(size)
        first, later = (taken(engine).seconds for _ in range(2))
        say(f"{engine.name}, {size} at a time: {later:.2f} s a step, the first {first:.2f} s")
        if best is None or later < best[0]:
            best, engine = (later, first, engine), best[2] if best else engine
        if engine is not best[2]:
            engine.close()
    assert best is not None
    return best[2], best[1]


def taken(engine: Engine) -> Step:
    """A step, after a pause."""
    time.sleep(PAUSE)
    return engine.step()


def measure(
    engines: dict[str, Engine], repeats: int, say: Log
) -> tuple[dict[str, list[Step]], dict[str, tuple[list[float], list[float]]], float | None]:
    """All steps; for each peer the seconds of (ours, theirs), taken one after the other; and how
    many cores others kept busy."""
    steps: dict[str, list[Step]] = {name: [] for name in engines}
    peers = [name for name in engines if name != "ours"]
    pairs: dict[str, tuple[list[float], list[float]]] = {}
    load, start = OtherLoad(), time.perf_counter()
    for _ in range(repeats):
        for peer in peers or ["ours"]:
            pair = dict.fromkeys([name for name in ("ours", peer) if name in engines])
            for name in pair:
                steps[name].append(taken(engines[name]))
            if len(pair) == 2:
                both = pairs.setdefault(peer, ([], []))
                both[0].append(steps["ours"][-1].seconds)
                both[1].append(steps[peer][-1].seconds)
            say(", ".join(f"{name} {steps[name][-1].seconds:.2f} s" for name in pair))
    busy, own = load.cores(), sum(step.cpu_seconds for each in steps.values() for step in each)
    if busy is not None:
        busy = max(busy - own / (time.perf_counter() - start), 0.0)
    return steps, pairs, busy


def summary(job: Job, steps: list[Step]) -> dict[str, Any]:
    """Medians over the steps of an engine."""
    seconds = statistics.median(step.seconds for step in steps)
    return {
        "seconds": seconds,
        "all_seconds": [step.seconds for step in steps],
        "tokens_per_second": job.new_tokens / seconds,
        "phases": {
            phase: statistics.median(step.phases[phase] for step in steps) for phase in PHASES
        },
        "peak_bytes": max(step.peak_bytes for step in steps),
    }


def table(report: dict[str, Any]) -> str:
    """Markdown: a column for each engine, and what was run."""
    engines: dict[str, dict[str, Any]] = report["engines"]

    def ratio(name: str) -> str:
        if name not in report["ratios"]:
            return ABSENT
        found = report["ratios"][name]
        return f"{found['of_medians']:.2f} ({found['pairs_min']:.2f} to {found['pairs_max']:.2f})"

    def row(title: str, cell: Callable[[dict[str, Any]], str]) -> list[str]:
        return [title, *(cell(engine) for engine in engines.values())]

    lines = [
        ["", *(head(name, report["versions"][name]) for name in engines)],
        ["---"] * (len(engines) + 1),
        row("seconds a step", lambda engine: f"{engine['seconds']:.2f}"),
        ["times ours (pairs)", *(ratio(name) for name in engines)],
        row("new tokens/s", lambda engine: f"{engine['tokens_per_second']:,.0f}"),
        *(
            [f"{phase}, s", *(f"{engine['phases'][phase]:.2f}" for engine in engines.values())]
            for phase in PHASES
        ),
        row("first step, s", lambda engine: f"{engine['first_seconds']:.1f}"),
        row("peak memory, GB", lambda engine: f"{engine['peak_bytes'] / 1e9:.1f}"),
        ["taken at a time", *(at_a_time(name, engine) for name, engine in engines.items())],
    ]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([body, "", *(f"- {note}" for note in notes(report))])


def head(name: str, versions: dict[str, str]) -> str:
    """Its name and version, and what it stands on."""
    own = {"trl": "trl", "tunix": "google-tunix"}.get(name)
    others = ", ".join(f"{package} {it}" for package, it in versions.items() if package != own)
    return f"{NAMES[name]}{' ' + versions[own] if own else ''} ({others})"


def at_a_time(name: str, engine: dict[str, Any]) -> str:
    """What reference, forward and backward take at once."""
    if name == "ours":
        return "1 packed row"
    return "1 group" if engine["micro_prompts"] == 1 else f"{engine['micro_prompts']} groups"


def notes(report: dict[str, Any]) -> list[str]:
    """What was run, and how the rows are to be read."""
    job, settings = Job(**report["job"]), report["settings"]
    drawn = [length for group in job.lengths for length in group]
    threads = "1 thread" if job.threads == 1 else f"{job.threads} threads"
    found = [
        f"{settings['model']}: {len(job.prompts)} prompts of {min(map(len, job.prompts))} to "
        f"{max(map(len, job.prompts))} tokens x {job.group_size} samples of {min(drawn)} to "
        f"{max(drawn)} new tokens, {job.new_tokens:,} in all, log-normal, forced alike by the end "
        "token in every engine; one update over all of them, with a reference model.",
        f"{report['machine']['processor']}, {threads}, fp32. Medians of {settings['repeats']} "
        "pairs of steps, ours and theirs in turn, after a first and a second step of each; times "
        "ours: the ratio of the medians, in brackets the lowest and highest of a pair.",
        "update: the rest of the step, that is forward, backward and optimizer. The first step "
        "compiles. Peak memory is that of the process, weights and reference included.",
    ]
    if (report["other_load"] or 0.0) > DISTURBED:
        found.append(
            f"Not a quiet machine: other processes kept {report['other_load']:.2f} cores busy "
            "during the measured steps. Do not quote these numbers."
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
