"""`--stage=sft`: fine-tune on traces, in a directory from which the run can be resumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from rmr1_jax.config import SftConfig
from rmr1_jax.data.token_cache import TokenCache, token_cache
from rmr1_jax.data.tokenize import TokenizeOptions
from rmr1_jax.data.traces import Traces, open_traces
from rmr1_jax.distributed.hosts import log_primary, run_on_primary
from rmr1_jax.io.progress import bar
from rmr1_jax.io.run_directory import open_workdir
from rmr1_jax.judging import JudgePrompt, load_prompt
from rmr1_jax.models.checkpoint import SIDECAR_FILES, load_config, load_tokenizer
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.presets import toy_model
from rmr1_jax.models.weight_map import count_parameters
from rmr1_jax.training.loop import MAY_CHANGE, train
from rmr1_jax.training.sft_trainer import ROWS, Material, Sft, make_material
from rmr1_jax.training.sharding_plan import make_sharding_plan
from rmr1_jax.training.training_run import (
    dtype_of,
    lora_of,
    starting_point,
    write_model_sidecar_files,
)
from rmr1_jax.training.validation import verdict_check

# What a run makes from its options before the first step.
TRACES, VALIDATION = "traces.json", "validation_traces.json"
MADE_AGAIN = (SIDECAR_FILES, ROWS, TRACES, VALIDATION)
FAR = 0.15  # a note says so where the traces of a step differ from batch_size by more


def run(config: SftConfig) -> int:
    """Train to the end, or until a signal. Returns 0, or 128 + the signal's number.

    Raises UserError.
    """
    config.check()
    workdir = Path(config.workdir)
    base = load_config(config.model) if config.model else toy_model()
    sharding = make_sharding_plan(base, config.mesh, sequence_parallel=config.sequence_parallel)
    resumes = open_workdir(workdir, config, may_change=MAY_CHANGE, made_again=MADE_AGAIN)
    traces = run_on_primary(lambda: open_traces(config.data.train, workdir / TRACES), about=workdir)
    prompt = load_prompt(config.data.prompt) if config.data.prompt else traces.prompt
    model = replace(base, prompt=prompt.style if prompt.is_built_in else "")
    lora = lora_of(config)
    write_model_sidecar_files(config, model, prompt, lora)
    tokenizer, stop_ids = load_tokenizer(workdir / SIDECAR_FILES)
    cache = tokenise(config, traces, tokenizer, prompt, "traces")
    other = None
    if config.data.validation:
        held_out = run_on_primary(
            lambda: open_traces(config.data.validation, workdir / VALIDATION), about=workdir
        )
        other = tokenise(config, held_out, tokenizer, prompt, "validation traces")
    material = make_material(config, cache, other, sharding)
    dtype = dtype_of(config)
    verdicts = verdict_check(config, model, tokenizer, prompt, stop_ids, sharding, dtype, "samples")
    describe(config, model, material, traces, prompt, dtype)
    params, rest = starting_point(config, model, sharding, lora, dtype)
    sft = Sft(
        config,
        model,
        material,
        sharding,
        params,
        rest,
        dtype=dtype,
        verdicts=verdicts,
    )
    return train(sft, resumes=resumes)


def tokenise(
    config: SftConfig, traces: Traces, tokenizer: Any, prompt: JudgePrompt, what: str
) -> TokenCache:
    """The token cache of traces, made where it is not there yet."""
    options = TokenizeOptions(
        config.data.max_length, config.data.loss_on_header, config.data.overlong
    )
    quiet = jax.process_index() != 0
    with bar(f"tokenizing {what}", None, quiet=quiet) as tokenized:

        def make() -> TokenCache:
            return token_cache(
                Path(config.workdir) / "tokens",
                traces.read(),
                traces.fingerprint,
                tokenizer,
                prompt,
                options,
                progress=tokenized.reach,
            )

        return run_on_primary(make, about=config.workdir)


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
    log_primary(
        f"{counts.kept:,} traces of {counts.examples:,} from {config.data.train}"
        + (f" (dropped: {dropped})" if dropped else "")
        + (f", {counts.truncated} cut to {config.data.max_length} tokens" * bool(counts.truncated))
        + (f", {traces.rejected} lines rejected" * bool(traces.rejected))
    )
    log_primary(
        f"prompts of {counts.prompt.mean:,.0f} tokens in the mean (longest {counts.prompt.max:,}), "
        f"traces of {counts.trace.mean:,.0f} ({counts.trace.max:,})"
    )
    steps = min(plan.steps, config.max_steps or plan.steps)
    log_primary(
        f"{steps} steps of {shape.per_step} rows x {shape.pack_length} tokens, about "
        f"{plan.mean_sequences:.0f} traces a step, {plan.padding:.1%} padding"
    )
    if abs(plan.mean_sequences / config.batch_size - 1) > FAR:
        log_primary(
            f"note: that is far from --batch_size={config.batch_size}, since a step is a number of "
            f"full rows on {shape.rows} rows at a time; another --mesh, --micro_batch_size or "
            "--data.pack_length comes nearer"
        )
    log_primary(
        f"{count_parameters(model):,} parameters, {config.optimizer.param_dtype}, computed in "
        f"{dtype}; prompt {prompt.style} ({prompt.sha256[:12]})"
    )
