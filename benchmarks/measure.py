"""One workload on both engines, in turn, and everything that is counted about it."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks.bandwidth import least_traffic
from benchmarks.machine import OtherLoad
from benchmarks.peers import Compilations, Ours, Samples, Transformers, check_lengths, timed
from benchmarks.workloads import Workload
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params


def measure(
    workload: Workload,
    config: ModelConfig,
    weights: Params,
    transformers: Transformers | None,
    *,
    slots: int | None,
    repeats: int,
    bandwidth: float,
    compilations: Compilations,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """First calls, then `repeats` pairs of calls: ours, theirs, ours, theirs.

    Args:
      transformers: None leaves it out.
      bandwidth: bytes a second, for the floor.
      say: is told what has been measured.
    """
    ours = Ours(config, weights, workload, slots)
    compilations.reset()
    first, samples = timed(lambda: ours.run(workload))
    if workload.stop_ids:
        workload = replace(workload, lengths=[[len(s) for s in group] for group in samples])
    check_lengths(workload, samples, "rmr1_jax")
    lengths = [length for group in workload.lengths for length in group]
    result: dict[str, Any] = {
        "name": workload.name,
        "title": workload.title,
        "tokens": workload.tokens,
        "mean_length": statistics.mean(lengths),
        "longest": max(lengths),
        "prompt_tokens": workload.prompt_tokens,
        "group_size": workload.group_size,
        "temperature": workload.temperature,
    }
    result["ours"] = {
        "slots": ours.engine.slots,
        "first_seconds": first,
        "first_compiled": compilations.count,
        "first_compile_seconds": compilations.seconds,
    }
    say(f"rmr1_jax, first call: {first:.2f} s, {compilations.count} programs compiled")

    if transformers:
        theirs_first, theirs_samples = timed(lambda: transformers.run(workload))
        check_lengths(workload, theirs_samples, "transformers")
        result["theirs"] = {
            "batch": transformers.batch,
            "first_seconds": theirs_first,
            "row_steps": transformers.row_steps(workload),
            "prefill_tokens": transformers.prefill_tokens(workload),
            "occupancy": workload.tokens / transformers.row_steps(workload),
        }
        say(f"transformers, first call: {theirs_first:.2f} s")
        if workload.temperature == 0:
            result["agreement"] = agreement(samples, theirs_samples, config.eos_token_ids)

    compilations.reset()
    load = OtherLoad()
    ours_seconds, theirs_seconds = [], []
    for _ in range(repeats):
        seconds, samples = timed(lambda: ours.run(workload))
        check_lengths(workload, samples, "rmr1_jax")
        ours_seconds.append(seconds)
        line = f"rmr1_jax {workload.tokens / seconds:,.1f} tokens/s"
        if transformers:
            seconds, samples = timed(lambda: transformers.run(workload))
            check_lengths(workload, samples, "transformers")
            theirs_seconds.append(seconds)
            line += f", transformers {workload.tokens / seconds:,.1f}"
        say(line)
    work = ours.work
    result["other_load"] = load.cores()
    result["ours"] |= speed(workload, ours_seconds) | {
        "compiled": compilations.count,
        "steps": work.steps,
        "row_steps": work.row_steps,
        "occupancy": work.occupancy,
        "prefill_tokens": work.prefill_tokens,
        "prefilled_of_copies": work.prefill_tokens / (workload.prompt_tokens * workload.group_size),
        "programs": sorted(work.programs),
    }
    if transformers:
        result["theirs"] |= speed(workload, theirs_seconds)
        result["ratio"] = ratios(ours_seconds, theirs_seconds)

    traffic = least_traffic(workload, config, weights, work.steps)
    floor = traffic.total / bandwidth
    prompts = prompt_seconds(ours, workload, repeats)
    median = result["ours"]["median_seconds"]
    result["floor"] = {
        **asdict(traffic),
        "seconds": floor,
        "measured_over_floor": median / floor,
        "prompt_seconds": prompts,
        "decode_over_floor": (median - prompts) / floor,
    }
    return result


def prompt_seconds(ours: Ours, workload: Workload, repeats: int) -> float:
    """Median seconds of the same prompts when every response is one token long."""
    short = replace(workload, lengths=[[1] * workload.group_size] * len(workload.prompts))
    short = replace(short, stop_ids=())
    ours.run(short)
    return statistics.median(timed(lambda: ours.run(short))[0] for _ in range(repeats))


def speed(workload: Workload, seconds: list[float]) -> dict[str, Any]:
    """Medians over the repeats."""
    median = statistics.median(seconds)
    return {
        "seconds": seconds,
        "median_seconds": median,
        "tokens_per_second": workload.tokens / median,
    }


def ratios(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times faster ours is: by the medians, and by the pairs of neighbouring calls."""
    pairs = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
    return {
        "of_medians": statistics.median(theirs) / statistics.median(ours),
        "pairs_min": min(pairs),
        "pairs_median": statistics.median(pairs),
        "pairs_max": max(pairs),
    }


def agreement(ours: Samples, theirs: Samples, ends: Sequence[int]) -> dict[str, float]:
    """Greedy tokens of both: the share of equal samples, and of tokens before a first difference.

    Compared up to our first end token, after which a model that was forced on repeats itself. Two
    likeliest tokens whose logits differ in the last bits may be ordered either way; from there on
    the samples differ.
    """
    equal = same = total = 0
    for group, other in zip(ours, theirs, strict=True):
        for sample, its in zip(group, other, strict=True):
            length = next((i for i, token in enumerate(sample, 1) if token in ends), len(sample))
            pairs = zip(sample[:length], its[:length], strict=True)
            before = next((i for i, (a, b) in enumerate(pairs) if a != b), length)
            same, total, equal = same + before, total + length, equal + (before == length)
    return {"samples": equal / sum(map(len, ours)), "tokens": same / total, "compared": total}
