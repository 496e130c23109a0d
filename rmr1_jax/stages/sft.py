"""`--stage=sft`: fine-tune on traces, in a directory from which the run can go on."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from rmr1_jax.config import SftConfig
from rmr1_jax.data import read_preferences
from rmr1_jax.data.store import ExampleStore
from rmr1_jax.data.token_cache import TokenCache, token_cache
from rmr1_jax.data.tokenize import Overlong, TokenizeOptions
from rmr1_jax.data.traces import Traces, open_traces, prompt_of_traces
from rmr1_jax.errors import UserError
from rmr1_jax.judging import JudgePrompt, Preference
from rmr1_jax.models.adapted import write_lora
from rmr1_jax.models.checkpoint import (
    CHECKPOINTS,
    COMPANIONS,
    load_config,
    load_tokenizer,
    tokenizer_directory,
)
from rmr1_jax.models.config import ModelConfig
from rmr1_jax.models.huggingface import PROMPT_FILE, has_tokenizer, write_companions
from rmr1_jax.models.lora import Lora, parse_targets
from rmr1_jax.models.tensors import count_parameters
from rmr1_jax.models.transformer import Params
from rmr1_jax.stages.self_made import make_pairs, make_traces, self_made_model, sft_defaults
from rmr1_jax.training.checkpoint import RunCheckpoints
from rmr1_jax.training.curves import draw_curves
from rmr1_jax.training.loop import Outcome
from rmr1_jax.training.metrics import MetricsLog
from rmr1_jax.training.placement import (
    Placement,
    first_params,
    make_placement,
    with_adapters,
)
from rmr1_jax.training.progress import TrainingProgress
from rmr1_jax.training.sft import MAY_CHANGE, ROWS, Material, Sft, make_material
from rmr1_jax.training.validation import VerdictCheck
from rmr1_jax.training.workdir import open_workdir

# What a run makes from its options before the first step.
MADE_AGAIN = (COMPANIONS, ROWS, "traces", "validation_traces")
FAR = 0.15  # it is said when the traces a step differ from batch_size by more


def run(config: SftConfig) -> int:
    """Train to the end, or until a signal. Returns 0, or 128 + the signal's number.

    Raises UserError.
    """
    config = sft_defaults(config)
    config.check()
    make_traces(config.data.train)
    make_pairs(config.validation.judge)
    workdir = Path(config.workdir)
    base = load_config(config.model) if config.model else self_made_model()
    placement = make_placement(base, config.mesh, split_sequence=config.split_sequence)
    goes_on = open_workdir(workdir, config, may_change=MAY_CHANGE, made_again=MADE_AGAIN)
    traces = open_traces(config.data.train, workdir / "traces")
    prompt = prompt_of_traces(traces, config.data.prompt)
    model = replace(base, prompt=prompt.style if prompt.is_built_in else "")
    lora = lora_of(config)
    if not (workdir / COMPANIONS / "config.json").is_file():
        write_model_companions(config, model, prompt, lora)
    tokenizer, stop_ids = load_tokenizer(workdir / COMPANIONS)
    cache = tokenise(config, traces, tokenizer, prompt, "traces")
    other = None
    if config.data.validation:
        held_out = open_traces(config.data.validation, workdir / "validation_traces")
        other = tokenise(config, held_out, tokenizer, prompt, "validation traces")
    material = make_material(config, cache, other, placement)
    dtype = config.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    verdicts = None
    if pairs := validation_pairs(config):
        verdicts = VerdictCheck(
            model,
            tokenizer,
            prompt,
            stop_ids,
            pairs,
            placement,
            dtype,
            config.validation.max_new_tokens,
            workdir / "samples",
        )
    describe(config, model, material, traces, prompt, dtype)
    params, rest = starting_point(config, model, placement, lora, dtype)
    sft = Sft(
        config,
        model,
        material,
        placement,
        params,
        rest,
        dtype=dtype,
        name_example=lambda index: traces.examples[index].id,
        verdicts=verdicts,
    )
    outcome = train(config, sft, goes_on)
    return 0 if outcome.stopped_by is None else 128 + outcome.stopped_by


def train(config: SftConfig, sft: Sft, goes_on: bool) -> Outcome:
    """From the latest checkpoint, or the start, to the end; says where everything lies."""
    workdir, speaks = Path(config.workdir), jax.process_index() == 0
    checkpoints = RunCheckpoints(workdir, keep=config.checkpoint.keep, warn=say)
    try:
        done = sft.resume(checkpoints)
        if goes_on:
            say(f"going on after step {done} of {sft.steps}")
        log = None
        if speaks:
            settings = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
            log = MetricsLog(workdir, after=done, config=settings)
        try:
            with TrainingProgress(steps=sft.steps, done=done, quiet=not speaks) as progress:
                outcome = sft.train(checkpoints, log, progress)
        finally:
            if log:
                log.close()
        if speaks:
            picture = draw_curves(workdir, f"{workdir.name}: supervised fine-tuning")
            report(config, outcome, checkpoints, picture, sft.steps)
    finally:
        checkpoints.close()
    return outcome


def say(line: str) -> None:
    """To whoever watches: one process of a run speaks."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def lora_of(config: SftConfig) -> Lora | None:
    """The adapters that are asked for. Raises UserError."""
    if not config.lora.rank:
        return None
    return Lora(config.lora.rank, config.lora.alpha, parse_targets(config.lora.targets))


def starting_point(
    config: SftConfig, model: ModelConfig, placement: Placement, lora: Lora | None, dtype: str
) -> tuple[Params, Params]:
    """What is trained, and what stays as it is (nothing, without adapters); placed."""
    with reading(model) as on_read:
        params = first_params(
            config.model or None,
            model,
            placement,
            # Weights that are not trained need no more than what they are computed in.
            dtype=dtype if lora else config.optimizer.param_dtype,
            seed=config.seed,
            on_read=on_read,
        )
    if lora is None:
        return params, {}
    return with_adapters(model, params, placement, lora, config)


def write_model_companions(
    config: SftConfig, model: ModelConfig, prompt: JudgePrompt, lora: Lora | None
) -> None:
    """What makes every checkpoint of the run one that can be judged with and exported."""
    directory = Path(config.workdir) / COMPANIONS
    directory.mkdir(exist_ok=True)
    if lora:
        write_lora(directory, lora, config.model)
    if config.model:
        with tokenizer_directory(config.model) as tokenizer:
            if not has_tokenizer(tokenizer):
                raise UserError(
                    f"--model={config.model} holds no tokenizer (tokenizer.json); copy the "
                    "model's tokenizer files there"
                )
            write_companions(directory, model, jax.numpy.dtype("float32"), tokenizer)
    else:
        from rmr1_jax.data.self_made import write_tokenizer

        write_tokenizer(directory)
        write_companions(directory, model, jax.numpy.dtype("float32"), None)
    if not prompt.is_built_in:
        (directory / PROMPT_FILE).write_text(prompt.system or "", encoding="utf-8")


def tokenise(
    config: SftConfig, traces: Traces, tokenizer: Any, prompt: JudgePrompt, what: str
) -> TokenCache:
    """The token cache of traces, made where it is not there yet."""
    options = TokenizeOptions(
        config.data.max_length, config.data.loss_on_header, cast(Overlong, config.data.overlong)
    )
    with bar(f"tokenising {what}", len(traces.examples)) as advance:
        return token_cache(
            Path(config.workdir) / "tokens",
            traces.examples,
            traces.fingerprint,
            tokenizer,
            prompt,
            options,
            progress=lambda done, total: advance(done),
        )


def validation_pairs(config: SftConfig) -> list[Preference]:
    """Labelled pairs that the model is asked to judge. Raises UserError."""
    path, number = config.validation.judge, config.validation.pairs
    if not path or not number or not config.validation.every:
        return []
    if Path(path).is_dir():
        split = ExampleStore(path).split("validation")
        some = (split[index].preference for index in range(min(len(split), number)))
        pairs = [pair for pair in some if pair is not None]
    else:
        pairs = []
        for pair in read_preferences(path, rejects=lambda *about: None):
            if pair.label is not None:
                pairs.append(pair)
            if len(pairs) == number:
                break
    if not pairs:
        raise UserError(
            f"--validation.judge={path} holds no labelled pair (rendered prompts cannot be shown "
            "in both orders); name a prepared directory or a file of labelled pairs"
        )
    return pairs


def describe(
    config: SftConfig,
    model: ModelConfig,
    material: Material,
    traces: Traces,
    prompt: JudgePrompt,
    dtype: str,
) -> None:
    """What is about to happen, in a few lines."""
    counts, plan = material.cache.counts, material.train
    shape = plan.shape
    dropped = ", ".join(f"{n} {why.replace('_', ' ')}" for why, n in counts.dropped.items())
    say(
        f"{counts.kept:,} traces of {counts.examples:,} from {config.data.train}"
        + (f" (dropped: {dropped})" if dropped else "")
        + (f", {counts.truncated} cut to {config.data.max_length} tokens" * bool(counts.truncated))
        + (f", {traces.rejected} lines rejected" * bool(traces.rejected))
    )
    say(
        f"prompts of {counts.prompt.mean:,.0f} tokens in the mean (longest {counts.prompt.max:,}), "
        f"traces of {counts.trace.mean:,.0f} ({counts.trace.max:,})"
    )
    steps = min(plan.steps, config.max_steps or plan.steps)
    say(
        f"{steps} steps of {shape.per_step} rows x {shape.row_length} tokens, about "
        f"{plan.mean_sequences:.0f} traces a step, {plan.padding:.1%} padding"
    )
    if abs(plan.mean_sequences / config.batch_size - 1) > FAR:
        say(
            f"note: that is far from --batch_size={config.batch_size}, since a step is a number of "
            f"full rows on {shape.rows} rows at a time; another --mesh, --micro_rows or "
            "--data.row_length comes nearer"
        )
    say(
        f"{count_parameters(model):,} parameters, {config.optimizer.param_dtype}, computed in "
        f"{dtype}; prompt {prompt.style} ({prompt.sha256[:12]})"
    )


def report(
    config: SftConfig,
    outcome: Outcome,
    checkpoints: RunCheckpoints,
    picture: Path | None,
    steps: int,
) -> None:
    """Where the result is, and what to do with it."""
    workdir = config.workdir
    if outcome.stopped_by is not None:
        say(
            f"stopped by signal {outcome.stopped_by} after step {outcome.step} of {steps}, saved; "
            "the same command goes on"
        )
        return
    if picture:
        say(f"curves: {picture}")
    best = checkpoints.best()
    if best not in (None, steps):
        say(f"the lowest validation loss was at step {best}: {workdir}/{CHECKPOINTS}/{best}")
    say(
        f"done: {steps} steps, in {workdir}. Judge with it, or export it:\n"
        f"  python -m rmr1_jax.main --stage=judge --model={workdir} --input=PAIRS.jsonl "
        "--output=VERDICTS.jsonl\n"
        f"  python -m rmr1_jax.main --stage=convert --input={workdir} --output=HF_DIR "
        "--to=huggingface"
    )


@contextmanager
def reading(model: ModelConfig) -> Iterator[Callable[[int], None]]:
    """A bar over the parameters of a checkpoint."""
    with bar("reading weights", count_parameters(model)) as advance:
        done = 0

        def on_read(count: int) -> None:
            nonlocal done
            done += count
            advance(done)

        yield on_read


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, gone when it is full; nothing elsewhere. Takes what is done so far."""
    console = Console(stderr=True, quiet=jax.process_index() != 0)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
