"""`--stage=sft`: fine-tune on traces, in a directory from which the run can go on."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from rmr1_jax.config import SftConfig
from rmr1_jax.data.token_cache import TokenCache, token_cache
from rmr1_jax.data.tokenize import Overlong, TokenizeOptions
from rmr1_jax.data.traces import Traces, open_traces, prompt_of_traces
from rmr1_jax.judging import JudgePrompt
from rmr1_jax.models.checkpoint import COMPANIONS, load_config, load_tokenizer
from rmr1_jax.models.config import ModelConfig
from rmr1_jax.models.tensors import count_parameters
from rmr1_jax.parallel.processes import first_alone, say
from rmr1_jax.stages.self_made import make_pairs, make_traces, self_made_model, sft_defaults
from rmr1_jax.stages.training_run import (
    bar,
    dtype_of,
    lora_of,
    starting_point,
    train,
    verdict_check,
    write_model_companions,
)
from rmr1_jax.training.curves import draw_curves
from rmr1_jax.training.placement import make_placement
from rmr1_jax.training.sft import MAY_CHANGE, ROWS, Material, Sft, make_material
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
    first_alone(partial(make_traces, config.data.train), about=config.data.train)
    first_alone(partial(make_pairs, config.validation.judge), about=config.validation.judge)
    workdir = Path(config.workdir)
    base = load_config(config.model) if config.model else self_made_model()
    placement = make_placement(base, config.mesh, split_sequence=config.split_sequence)
    goes_on = open_workdir(workdir, config, may_change=MAY_CHANGE, made_again=MADE_AGAIN)
    traces = first_alone(lambda: open_traces(config.data.train, workdir / "traces"), about=workdir)
    prompt = prompt_of_traces(traces, config.data.prompt)
    model = replace(base, prompt=prompt.style if prompt.is_built_in else "")
    lora = lora_of(config)
    write_model_companions(config, model, prompt, lora)
    tokenizer, stop_ids = load_tokenizer(workdir / COMPANIONS)
    cache = tokenise(config, traces, tokenizer, prompt, "traces")
    other = None
    if config.data.validation:
        held_out = first_alone(
            lambda: open_traces(config.data.validation, workdir / "validation_traces"),
            about=workdir,
        )
        other = tokenise(config, held_out, tokenizer, prompt, "validation traces")
    material = make_material(config, cache, other, placement)
    dtype = dtype_of(config)
    verdicts = verdict_check(config, model, tokenizer, prompt, stop_ids, placement, "samples")
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
    title = f"{workdir.name}: supervised fine-tuning"
    return train(config, sft, goes_on, partial(draw_curves, title=title))


def tokenise(
    config: SftConfig, traces: Traces, tokenizer: Any, prompt: JudgePrompt, what: str
) -> TokenCache:
    """The token cache of traces, made where it is not there yet."""
    options = TokenizeOptions(
        config.data.max_length, config.data.loss_on_header, cast(Overlong, config.data.overlong)
    )
    with bar(f"tokenising {what}", len(traces.examples)) as advance:

        def make() -> TokenCache:
            return token_cache(
                Path(config.workdir) / "tokens",
                traces.examples,
                traces.fingerprint,
                tokenizer,
                prompt,
                options,
                progress=lambda done, total: advance(done),
            )

        return first_alone(make, about=config.workdir)


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
