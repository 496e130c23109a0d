"""Pairs judged a minute, and the verdicts, beside `generate` of Hugging Face transformers.

One process, the same weights in fp32, the same prompts token by token, greedy, the same threads.
transformers judges in batches sorted by length, of the size that is fastest on a part of the pairs.

    python -m benchmarks.judging --model=DIRECTORY --rm_bench=total_dataset.json [--rmb=DIRECTORY]
        [--rewardbench=FILE] [--preferences=FILE] [--pairs=32] [--max_new_tokens=256]
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from benchmarks.decode import Log, as_huggingface, write
from benchmarks.machine import OtherLoad, cores, prepare_process, processor
from benchmarks.peers import Compilations, timed
from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmarks import BENCHMARKS
from rmr1_jax.evaluation.record import Record
from rmr1_jax.evaluation.runner import Task, judge_tasks, parse_order, positions, spread, tasks_of
from rmr1_jax.judging import answer
from rmr1_jax.sampling.judge import Judge, SamplingOptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the JSON, print the table. Returns the exit status."""
    options = parse(arguments)
    try:
        prepare_process(options.threads)
        report = run(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write(report, options.output)
    Console().print(table(report))
    for difference in report["differences"]:
        print(json.dumps(difference))
    print(f"written to {options.output}", file=sys.stderr)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.judging", description=(__doc__ or "").split("\n\n")[0]
    )
    add = parser.add_argument
    add("--model", required=True, type=Path, help="a checkpoint")
    for name in BENCHMARKS:
        add(f"--{name}", default="", help="a file or directory of it")
    add("--pairs", default=32, type=int, help="in all, evenly spread (%(default)s)")
    add("--max_new_tokens", default=256, type=int, help="the longest trace (%(default)s)")
    add("--longest_prompt", default=0, type=int, help="leave out pairs above so many tokens")
    add("--prompt", default=None, help="as in --stage=judge")
    add("--max_num_seqs", default=16, type=int, help="of our engine (%(default)s)")
    add("--batches", default="1,4,8,16", help="sizes that transformers may choose (%(default)s)")
    add("--trial", default=8, type=int, help="pairs that it chooses by (%(default)s)")
    add("--threads", default=cores(), type=int, help="of both engines (all cores: %(default)s)")
    add("--output", default="out/judging.json", type=Path, help="JSON (%(default)s)")
    options = parser.parse_args(arguments)
    options.batches = [int(size) for size in options.batches.split(",")]
    if not any(getattr(options, name) for name in BENCHMARKS):
        parser.error(f"name some pairs: --{', --'.join(BENCHMARKS)}")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    say = Log()
    compilations = Compilations()
    directory = as_huggingface(options.model)
    judge = Judge.load(
        directory,
        prompt=options.prompt,
        dtype="float32",
        max_num_seqs=options.max_num_seqs,
        mesh="",
    )
    tasks = choose_tasks(options, judge)
    prompts = [judge.prompt_tokens(task.pair) for task in tasks]
    say(f"{len(tasks)} pairs, prompts of {min(map(len, prompts))} to {max(map(len, prompts))}")

    load = OtherLoad()
    compilations.reset()
    seconds, ours = timed(lambda: judge_ours(judge, tasks, prompts, options.max_new_tokens))
    compiling = compilations.seconds
    say(f"rmr1_jax: {seconds:.1f} s, {compiling:.1f} s of it compiling")

    theirs_model = AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()
    peer = Peer(theirs_model, judge.stop_ids, options.max_new_tokens)
    trials = choose_batch(peer, prompts, options, say)
    batch = min(trials, key=lambda size: trials[size])
    theirs_seconds, theirs = timed(lambda: peer.generate(prompts, batch))
    say(f"transformers, {batch} at a time: {theirs_seconds:.1f} s")

    texts = [judge.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in theirs]
    differences = list(compare(judge, tasks, prompts, ours, theirs, texts, theirs_model))
    same = sum(
        record.verdict == answer(text, "evaluation").verdict
        for record, text in zip(ours, texts, strict=True)
    )
    return {
        "machine": {"processor": processor(), "cores": cores(), "system": platform.system()},
        "versions": {name: version(name) for name in ("jax", "torch", "transformers")},
        "model": options.model.stem if options.model.is_file() else options.model.name,
        "prompt_sha256": judge.prompt.sha256,
        "pairs": len(tasks),
        "prompt_tokens": sum(map(len, prompts)),
        "max_new_tokens": options.max_new_tokens,
        "other_load": load.cores(),
        "ours": {
            "slots": options.max_num_seqs,
            "seconds": seconds,
            "compiling": compiling,
            "tokens": sum(record.trace_tokens or 0 for record in ours),
            "verdicts": sum(record.verdict is not None for record in ours),
            "right": sum(record.correct for record in ours),
        },
        "theirs": {
            "batch": batch,
            "trials": trials,
            "seconds": theirs_seconds,
            "tokens": sum(map(len, theirs)),
        },
        "ratio": theirs_seconds / seconds,
        "ratio_without_compiling": theirs_seconds / (seconds - compiling),
        "same_verdict": same,
        "same_trace": sum(record.trace == text for record, text in zip(ours, texts, strict=True)),
        "differences": differences,
    }


def choose_tasks(options: argparse.Namespace, judge: Judge) -> list[Task]:
    """The pairs of all sources in turn, each in its published order."""
    named = [name for name in BENCHMARKS if getattr(options, name)]
    tasks = []
    for name in named:
        items = BENCHMARKS[name].load(getattr(options, name), lambda *about: None).items
        all_tasks = tasks_of(items, positions(items, parse_order("published")))
        if options.longest_prompt:
            all_tasks = [
                task
                for task in all_tasks
                if len(judge.prompt_tokens(task.pair)) <= options.longest_prompt
            ]
        chosen = set(spread([task.item for task in all_tasks], options.pairs // len(named)))
        tasks += [task for task in all_tasks if task.item in chosen]
    return tasks


def judge_ours(
    judge: Judge, tasks: Sequence[Task], prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[Record]:
    """The records in the order of the tasks."""
    lengths = [len(prompt) for prompt in prompts]
    options = SamplingOptions(max_new_tokens=max_new_tokens)
    records = [record for [record] in judge_tasks(judge, tasks, lengths, options)]
    places = {(record.benchmark, *record.key): record for record in records}
    return [places[(task.item.benchmark, *task.keys(1)[0])] for task in tasks]


class Peer:
    """Greedy `generate` in batches of similar length, each row to its stop token or the limit."""

    def __init__(self, model: Any, stop_ids: Sequence[int], max_new_tokens: int) -> None:
        self.model, self.stop_ids, self.max_new_tokens = model, list(stop_ids), max_new_tokens

    def generate(self, prompts: Sequence[Sequence[int]], batch: int) -> list[list[int]]:
        """New tokens of each prompt, its stop token included."""
        by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        new: dict[int, list[int]] = {}
        for start in range(0, len(by_length), batch):
            some = by_length[start : start + batch]
            rows = self._batch([list(prompts[number]) for number in some])
            new |= dict(zip(some, rows, strict=True))
        return [new[number] for number in range(len(prompts))]

    def _batch(self, prompts: list[list[int]]) -> Iterator[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                # Its own generation config may hold a repetition penalty.
                repetition_penalty=1.0,
                eos_token_id=self.stop_ids,
                pad_token_id=0,
                use_cache=True,
            )
        for row in output.tolist():
            new = row[width:]
            end = next((i for i, token in enumerate(new, 1) if token in self.stop_ids), len(new))
            yield new[:end]


def choose_batch(
    peer: Peer, prompts: Sequence[Sequence[int]], options: argparse.Namespace, say: Log
) -> dict[int, float]:
    """Seconds by batch size, on evenly spread pairs, the first call of each left out."""
    some = [prompts[place * len(prompts) // options.trial] for place in range(options.trial)]
    peer.generate(some[:1], 1)
    seconds = {}
    for size in options.batches:
        seconds[size], _ = timed(partial(peer.generate, some, size))
        say(f"transformers, {size} at a time: {seconds[size]:.1f} s for {len(some)} pairs")
    return seconds


def compare(
    judge: Judge,
    tasks: Sequence[Task],
    prompts: Sequence[Sequence[int]],
    ours: Sequence[Record],
    theirs: Sequence[list[int]],
    texts: Sequence[str],
    model: Any,
) -> Iterator[dict[str, Any]]:
    """Each pair whose traces differ: where first, and how near the two tokens are to a tie there.

    The gap is between the logits of the two tokens, computed by transformers in one forward pass.
    """
    for task, prompt, record, tokens, text in zip(tasks, prompts, ours, theirs, texts, strict=True):
        if record.trace == text:
            continue
        own = judge.tokenizer(record.trace or "", add_special_tokens=False)["input_ids"]
        pairs = zip(own, tokens, strict=False)
        place = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(own), len(tokens)))
        their_verdict = answer(text, "evaluation").verdict
        difference = {
            "benchmark": task.item.benchmark,
            "id": task.item.id,
            "verdicts": [record.verdict, their_verdict],
            "first_difference": place,
        }
        if place < min(len(own), len(tokens)):
            with torch.inference_mode():
                ids = torch.tensor([[*prompt, *tokens[:place]]])
                logits = model(input_ids=ids).logits[0, -1]
            difference["tokens"] = [
                judge.tokenizer.decode([token]) for token in (own[place], tokens[place])
            ]
            difference["logit_gap"] = float(logits[tokens[place]] - logits[own[place]])
        yield difference


def table(report: dict[str, Any]) -> Table:
    shown = Table("", "rmr1_jax", "transformers", box=None)
    ours, theirs, pairs = report["ours"], report["theirs"], report["pairs"]
    minute = lambda seconds: f"{60 * pairs / seconds:.2f}"  # noqa: E731
    shown.add_row(
        "pairs/min, compiling included", minute(ours["seconds"]), minute(theirs["seconds"])
    )
    shown.add_row("pairs/min, without", minute(ours["seconds"] - ours["compiling"]), "")
    shown.add_row("seconds", f"{ours['seconds']:.1f}", f"{theirs['seconds']:.1f}")
    shown.add_row("new tokens", f"{ours['tokens']:,}", f"{theirs['tokens']:,}")
    shown.add_row("at a time", str(ours["slots"]), str(theirs["batch"]))
    shown.add_row("ratio", f"{report['ratio']:.2f}", "")
    shown.add_row("ratio without compiling", f"{report['ratio_without_compiling']:.2f}", "")
    shown.add_row("same verdict", f"{report['same_verdict']} of {pairs}", "")
    shown.add_row("same trace", f"{report['same_trace']} of {pairs}", "")
    return shown


if __name__ == "__main__":
    sys.exit(main())
