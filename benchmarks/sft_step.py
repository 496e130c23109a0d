"""One step of supervised fine-tuning, beside torch and Hugging Face transformers.

Both start from the same weights and take the same packed rows in fp32 with the same threads, in one
process: forward, loss on the traces, backward, clipping, AdamW. Each engine may take the rows one
at a time or all at once, whichever is faster for it; neither computes activations twice. The losses
of the first steps are compared, so that it is the same work.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.decode import Log, as_huggingface, write
from benchmarks.machine import OtherLoad, cores, prepare_process, processor
from benchmarks.peers import timed
from rmr1_jax.config import OptimizerConfig
from rmr1_jax.data.packed_batch import Batch
from rmr1_jax.errors import UserError
from rmr1_jax.models.checkpoint import load_model
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.training.flops import training_flops
from rmr1_jax.training.nll import nll
from rmr1_jax.training.step import initial_state, make_optimizer, train_step

SETTINGS = OptimizerConfig(learning_rate=1e-5, warmup=0.0, final_lr_ratio=1.0)
FIRST_STEPS = 2
TOLERANCE = 2e-4


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the JSON, print the table. Returns the exit status."""
    options = parse(arguments)
    try:
        prepare_process(options.threads)
        report = run(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(report, markdown=options.markdown))
    print(f"written to {options.output}", file=sys.stderr)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sft_step", description=(__doc__ or "").split("\n\n")[0]
    )
    add = parser.add_argument
    add("--model", required=True, action="append", type=Path, help="a checkpoint; repeatable")
    add("--rows", default=4, type=int, help="packed rows a step (%(default)s)")
    add("--pack_length", default=512, type=int, help="tokens a row (%(default)s)")
    add("--repeats", default=3, type=int, help="pairs of measured steps (%(default)s)")
    add("--threads", default=cores(), type=int, help="of both (all cores: %(default)s)")
    add("--output", default="out/sft_step.json", type=Path, help="JSON (%(default)s)")
    add("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args(arguments)
    for name in ("rows", "pack_length", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if not 1 <= options.threads <= cores():
        parser.error(f"--threads={options.threads}: this process may use 1 to {cores()}")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    say = Log()
    report: dict[str, Any] = {
        "machine": {"processor": processor(), "cores": cores()},
        "versions": {name: version(name) for name in ("jax", "torch", "transformers")},
        "settings": {
            name: getattr(options, name) for name in ("rows", "pack_length", "repeats", "threads")
        },
        "models": [],
    }
    for model in options.model:
        name = model.stem if model.is_file() else model.name
        directory = as_huggingface(model)
        config, params = load_model(directory, dtype="float32")
        for learn in ("everything", "traces"):
            say.prefix = f"{name}, learning {learn}: "
            batch = packed_rows(
                config.vocab_size,
                options.rows,
                options.pack_length,
                everything=learn == "everything",
            )
            result = compare(directory, config, params, batch, options.repeats, say)
            report["models"].append({"model": name, "learn": learn} | result)
            write(report, options.output)
    return report


def packed_rows(vocab: int, rows: int, pack_length: int, *, everything: bool) -> Batch:
    """Full rows of three sequences or more, with prompts of two thirds and traces of one third, as
    RM-R1's are; or rows of one sequence each that is learnt whole (but for its first token)."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, vocab, (rows, pack_length), dtype=np.int32)
    segments = np.ones((rows, pack_length), np.int32)
    positions = np.tile(np.arange(pack_length, dtype=np.int32), (rows, 1))
    learnt = np.ones((rows, pack_length), bool)
    learnt[:, 0] = False
    if not everything:
        for row in range(rows):
            cuts = np.sort(rng.choice(np.arange(1, 8), 2, replace=False)) * pack_length // 8
            for number, (start, stop) in enumerate(
                zip([0, *cuts], [*cuts, pack_length], strict=True), start=1
            ):
                segments[row, start:stop] = number
                positions[row, start:stop] = np.arange(stop - start)
                learnt[row, start : start + 2 * (stop - start) // 3] = False
    width = int(learnt.sum(-1).max())
    where = np.zeros((rows, width), np.int32)
    weights = np.zeros((rows, width), np.float32)
    for row in range(rows):
        targets = np.flatnonzero(learnt[row])
        where[row, : len(targets)], weights[row, : len(targets)] = targets - 1, 1.0
    return Batch(
        tokens=tokens,
        positions=positions,
        segment_ids=segments,
        loss_positions=where,
        loss_targets=np.take_along_axis(tokens, np.minimum(where + 1, pack_length - 1), axis=1),
        loss_weights=weights,
        verdicts=np.zeros_like(where, bool),
    )


def compare(
    directory: Path, config: ModelConfig, params: Params, batch: Batch, repeats: int, say: Log
) -> dict[str, Any]:
    """Speeds of both in turn, ours first, after both have warmed up and agreed on the losses."""
    engines: dict[str, Ours | Theirs] = {}
    for name, make in (
        ("ours", lambda rows: Ours(config, params, batch, rows)),
        ("theirs", lambda rows: Theirs(directory, batch, rows)),
    ):
        engines[name] = faster(make, sorted({1, len(batch.tokens)}), name, say)
    ours, theirs = engines["ours"], engines["theirs"]
    for step, (a, b) in enumerate(zip(ours.losses, theirs.losses, strict=False), start=1):
        if abs(a - b) > TOLERANCE * abs(b):
            raise RuntimeError(
                f"step {step}: our loss is {a:.6f}, theirs {b:.6f}: not the same work"
            )
    load = OtherLoad()
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for name in seconds:
            seconds[name].append(timed(engines[name].step)[0])
        say(", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items()))
    tokens = int((batch.segment_ids > 0).sum())
    learnt = float((batch.loss_weights > 0).sum())
    lengths = np.concatenate([np.bincount(row)[1:] for row in batch.segment_ids])
    median = {name: statistics.median(values) for name, values in seconds.items()}
    pairs = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return {
        "tokens": tokens,
        "learnt": int(learnt),
        "losses": {"ours": ours.losses[:FIRST_STEPS], "theirs": theirs.losses[:FIRST_STEPS]},
        "rows_at_a_time": {"ours": ours.micro_batch_size, "theirs": theirs.micro_batch_size},
        "seconds": median,
        "tokens_per_second": {name: tokens / value for name, value in median.items()},
        "flops_per_second": {
            name: training_flops(config, lengths, learnt) / value for name, value in median.items()
        },
        "ratio": {
            "median": median["theirs"] / median["ours"],
            "low": min(pairs),
            "high": max(pairs),
        },
        "other_load": load.cores(),
    }


def faster(
    make: Callable[[int], "Ours | Theirs"], sizes: Sequence[int], name: str, say: Log
) -> "Ours | Theirs":
    """The engine with the number of rows at a time that suits it, its first steps taken."""
    best, best_seconds = None, float("inf")
    for rows in sizes:
        engine = make(rows)
        for _ in range(FIRST_STEPS):
            seconds, _ = timed(engine.step)
        say(f"{name}, {rows} rows at a time: {seconds:.2f} s a step")
        if seconds < best_seconds:
            best, best_seconds = engine, seconds
    assert best is not None
    return best


class Ours:
    """Our train step over one batch, again and again."""

    def __init__(
        self, config: ModelConfig, params: Params, batch: Batch, micro_batch_size: int
    ) -> None:
        self.micro_batch_size, self.losses = micro_batch_size, list[float]()
        optimizer = make_optimizer(SETTINGS, 1000)
        self._step: Any = jax.jit(
            partial(
                train_step, config=config, objective=nll, optimizer=optimizer, dtype=jnp.float32
            ),
            donate_argnums=0,
        )
        self._state = initial_state(jax.tree.map(jnp.copy, params), optimizer)
        self._batch = jax.tree.map(
            lambda leaf: jnp.asarray(leaf.reshape(-1, micro_batch_size, *leaf.shape[1:])), batch
        )

    def step(self) -> None:
        self._state, metrics = self._step(self._state, self._batch, {})
        jax.block_until_ready(self._state)
        self.losses.append(float(metrics.sums.loss))


class Theirs:
    """transformers and torch.optim, with gradient accumulation."""

    def __init__(self, directory: Path, batch: Batch, micro_batch_size: int) -> None:
        self.micro_batch_size, self.losses = micro_batch_size, list[float]()
        self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self._model.train()
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(),
            lr=SETTINGS.learning_rate,
            betas=(SETTINGS.beta1, SETTINGS.beta2),
            eps=SETTINGS.epsilon,
            weight_decay=SETTINGS.weight_decay,
        )
        self._micro = [
            self._inputs(Batch(*(leaf[i : i + micro_batch_size] for leaf in batch)))
            for i in range(0, len(batch.tokens), micro_batch_size)
        ]
        self._weight = float(batch.loss_weights.sum())

    def _inputs(self, rows: Batch) -> dict[str, torch.Tensor]:
        T = rows.tokens.shape[1]
        labels = np.full(rows.tokens.shape, -100, np.int64)
        for row in range(len(rows.tokens)):
            learnt = rows.loss_positions[row][rows.loss_weights[row] > 0] + 1
            labels[row, learnt] = rows.tokens[row, learnt]
        inputs = {
            "input_ids": torch.tensor(rows.tokens, dtype=torch.long),
            "position_ids": torch.tensor(rows.positions, dtype=torch.long),
            "labels": torch.tensor(labels),
        }
        if rows.segment_ids.max() > 1:  # without a mask, sdpa knows that it is causal
            same = rows.segment_ids[:, :, None] == rows.segment_ids[:, None, :]
            inputs["attention_mask"] = torch.tensor((same & np.tri(T, dtype=bool))[:, None])
        return inputs

    def step(self) -> None:
        self._optimizer.zero_grad()
        total = 0.0
        for micro in self._micro:
            loss = self._model(**micro, use_cache=False, num_items_in_batch=self._weight).loss
            loss.backward()
            total += float(loss)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), SETTINGS.clip_norm)
        self._optimizer.step()
        self.losses.append(total)


def table(report: dict[str, Any], *, markdown: bool) -> str:
    """One line a model and kind of batch."""
    head = ["model", "learnt", "rmr1_jax, tokens/s", "transformers", "ratio", "GFLOP/s, ours"]
    lines = [head]
    for record in report["models"]:
        speed, ratio = record["tokens_per_second"], record["ratio"]
        lines.append(
            [
                record["model"],
                f"{record['learn']} ({record['learnt']} of {record['tokens']})",
                f"{speed['ours']:,.0f}",
                f"{speed['theirs']:,.0f}",
                f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
                f"{record['flops_per_second']['ours'] / 1e9:.0f}",
            ]
        )
    if markdown:
        rows = ["| " + " | ".join(line) + " |" for line in lines]
        rows.insert(1, "|" + "---|" * len(head))
        return "\n".join(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
