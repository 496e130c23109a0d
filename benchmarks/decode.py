"""Tokens per second of our engine beside `generate` of Hugging Face transformers, on the CPU.

One process, the same weights, prompts, lengths, dtype (fp32) and threads; calls in turn.

    python -m benchmarks.decode --model=DIRECTORY [--model=...] [--only=a,b,c,c_spread] [--startup]

A model is a Hugging Face directory, a GGUF file or a converted directory; the last two are
converted once to a Hugging Face directory, which both engines load.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.bandwidth import COPY_BYTES, copy_bandwidth, weight_bytes
from benchmarks.machine import cores, prepare_process, processor
from benchmarks.measure import measure
from benchmarks.peers import Compilations, Ours, Transformers, load_ours
from benchmarks.prompts import MakePrompts, prompt_maker
from benchmarks.report import print_report
from benchmarks.startup import measure_startup
from benchmarks.workloads import (
    Workload,
    equal_groups,
    equal_lengths,
    spread_groups,
    spread_lengths,
)
from rmr1_jax.config import ConvertConfig
from rmr1_jax.errors import UserError
from rmr1_jax.models.checkpoint import recognise
from rmr1_jax.stages import convert_stage as convert

WORKLOADS = ("a", "b", "c", "c_spread")
CONVERTED = Path(".cache/benchmarks")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the JSON after every workload, print the table. Returns the exit status."""
    options = parse(arguments)
    try:
        prepare_process(options.threads)
        report = run(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_report(report, markdown=options.markdown)
    print(f"written to {options.output}", file=sys.stderr)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode",
        description=(__doc__ or "").split("\n\n")[0],
        epilog="(a) equal lengths; (b) log-normal lengths; (c) 7 samples of each long prompt; "
        "(c_spread) the same with log-normal lengths, our engine only.",
    )
    add = parser.add_argument
    add("--model", required=True, action="append", type=Path, help="a checkpoint; repeatable")
    add("--only", default=",".join(WORKLOADS), help="some of %(default)s; empty for none")
    add("--scale", default=1.0, type=float, help="of the number of requests in b, c, c_spread")
    add("--repeats", default=3, type=int, help="pairs of measured calls (%(default)s)")
    add("--threads", default=cores(), type=int, help="of both engines (all cores: %(default)s)")
    add("--slots", type=int, help="of our engine (16; in c 28)")
    add("--batch", default=32, type=int, help="rows of transformers at a time (%(default)s)")
    add("--startup", action="store_true", help="also the time to a first verdict, cold and warm")
    add("--startup_tokens", default=16, type=int, help="length of that verdict (%(default)s)")
    add("--output", default="out/decode.json", type=Path, help="JSON (%(default)s)")
    add("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args(arguments)
    options.only = [name for name in options.only.split(",") if name]
    if unknown := set(options.only) - set(WORKLOADS):
        parser.error(f"--only: no such workload: {', '.join(sorted(unknown))}")
    if not 1 <= options.threads <= cores():
        parser.error(f"--threads={options.threads}: this process may use 1 to {cores()}")
    if options.scale <= 0:
        parser.error(f"--scale={options.scale} must be above 0")
    for name in ("repeats", "batch", "startup_tokens"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.slots is not None and options.slots < 1:
        parser.error("--slots must be at least 1")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for, as it is written to `options.output`."""
    say = Log()
    bandwidth = copy_bandwidth(options.threads)
    say(f"copy bandwidth: {bandwidth / 1e9:.1f} GB/s")
    report: dict[str, Any] = {
        "machine": {"processor": processor(), "cores": cores(), "system": platform.system()},
        "versions": {name: version(name) for name in ("jax", "torch", "transformers")},
        "settings": {
            name: getattr(options, name)
            for name in ("scale", "repeats", "threads", "slots", "batch")
        },
        "bandwidth": {
            "bytes_per_second": bandwidth,
            "method": f"numpy.copyto of {COPY_BYTES / 2**20:.0f} MiB split over all threads, "
            "best of 7, read and written bytes",
        },
        "models": [],
    }
    compilations = Compilations()
    for model in options.model:
        record: dict[str, Any] = {"model": model.stem if model.is_file() else model.name}
        record["workloads"] = []
        report["models"].append(record)
        for _ in measure_model(model, record, options, bandwidth, compilations, say):
            write(report, options.output)
    return report


def measure_model(
    model: Path,
    record: dict[str, Any],
    options: argparse.Namespace,
    bandwidth: float,
    compilations: Compilations,
    say: "Log",
) -> Iterator[None]:
    """Fill `record`; yields after every part."""
    if options.startup:
        say.prefix = f"{record['model']}: "
        record["startup"] = measure_startup(
            model, repeats=options.repeats, max_new_tokens=options.startup_tokens, say=say
        )
        yield
    if not options.only:
        return
    directory = as_huggingface(model)
    config, weights = load_ours(directory)
    record["weight_bytes"] = weight_bytes(config, weights)
    make_prompts = prompt_maker(directory, config.vocab_size)

    def run_ours(workload: Workload) -> list[list[list[int]]]:
        return Ours(config, weights, workload, options.slots).run(workload)

    transformers = Transformers(directory, options.batch)
    for name in options.only:
        say.prefix = f"{record['model']} ({name}): "
        workload = make_workload(name, make_prompts, options.scale, run_ours)
        record["workloads"].append(
            measure(
                workload,
                config,
                weights,
                transformers if workload.with_transformers else None,
                slots=options.slots,
                repeats=options.repeats,
                bandwidth=bandwidth,
                compilations=compilations,
                say=say,
            )
        )
        yield


class Log:
    """Prints a line to the standard error, with the seconds since the start and a prefix."""

    def __init__(self) -> None:
        self.start, self.prefix = time.perf_counter(), ""

    def __call__(self, line: str) -> None:
        seconds = time.perf_counter() - self.start
        print(f"{seconds:7.1f} s  {self.prefix}{line}", file=sys.stderr, flush=True)


def make_workload(
    name: str,
    make_prompts: MakePrompts,
    scale: float,
    run: Callable[[Workload], list[list[list[int]]]],
) -> Workload:
    make: dict[str, Callable[[], Workload]] = {
        "a": lambda: equal_lengths(make_prompts),
        "b": lambda: spread_lengths(make_prompts, scale),
        "c": lambda: equal_groups(make_prompts, scale),
        "c_spread": lambda: spread_groups(make_prompts, scale, run),
    }
    return make[name]()


def as_huggingface(model: Path) -> Path:
    """A Hugging Face directory with the weights of `model`: itself, or converted once and kept."""
    kind, place = recognise(model)
    if kind == "huggingface":
        return place
    changed = place.stat().st_mtime_ns
    directory = CONVERTED / f"{place.name}-{changed:x}"
    if not directory.exists():
        convert.run(
            ConvertConfig(
                input=str(place), output=str(directory), to="huggingface", dtype="float32"
            )
        )
    return directory


def write(report: dict[str, Any], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
