"""`--stage=grpo`: reinforcement learning on labelled pairs, in a directory from which the run can
be resumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from rmr1_jax.config import GrpoConfig
from rmr1_jax.data.preference_file import RejectsFile
from rmr1_jax.data.prompt_set import PromptSet, open_prompts
from rmr1_jax.distributed.hosts import assert_same_on_all_hosts, log_primary
from rmr1_jax.errors import UserError
from rmr1_jax.io.progress import bar
from rmr1_jax.io.run_directory import open_workdir
from rmr1_jax.judging import JudgePrompt
from rmr1_jax.models.checkpoint import SIDECAR_FILES, load_config, load_tokenizer, prompt_of
from rmr1_jax.models.lora import Lora, merge
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.models.weight_map import check_shapes, count_parameters, tensors_of
from rmr1_jax.rl.reward import load_reward
from rmr1_jax.rl.trainer import MAY_CHANGE, Grpo, steps_of
from rmr1_jax.sampling.judge import choose_prompt
from rmr1_jax.training.loop import train
from rmr1_jax.training.sharding_plan import ShardingPlan, make_sharding_plan
from rmr1_jax.training.training_run import (
    dtype_of,
    first_params,
    lora_of,
    starting_point,
    write_model_sidecar_files,
)
from rmr1_jax.training.validation import verdict_check

REJECTS = "prompts.rejects.jsonl"


def run(config: GrpoConfig) -> int:
    """Train to the end, or until a signal. Returns 0, or 128 + the signal's number.

    Raises UserError.
    """
    config.check()
    reward = load_reward(config.reward.function)
    workdir = Path(config.workdir)
    base = load_config(config.model)
    check_lengths(config, base)
    check_reference(config, base)
    tokenizer, stop_ids = load_tokenizer(config.model)
    stop_ids = tuple(sorted({*stop_ids, tokenizer.eos_token_id} - {None}))
    if not stop_ids:
        raise UserError(
            f"the tokenizer in {config.model} names no token that ends an answer (eos_token), so "
            "every trace would run to its limit; add eos_token_id to its generation_config.json"
        )
    prompt, why = choose_prompt(config.data.prompt or None, prompt_of(config.model), tokenizer)
    sharding = make_sharding_plan(base, config.mesh, sequence_parallel=config.sequence_parallel)
    resumes = open_workdir(
        workdir, config, may_change=MAY_CHANGE, made_again=(SIDECAR_FILES, REJECTS, "validation")
    )
    prompts = read_prompts(config, tokenizer, prompt)
    assert_same_on_all_hosts(prompts.fingerprint.encode(), about=config.data.train)
    steps = steps_of(config, len(prompts))
    model = replace(base, prompt=prompt.style if prompt.is_built_in else "")
    lora = lora_of(config)
    write_model_sidecar_files(config, model, prompt, lora)
    dtype = dtype_of(config)
    verdicts = verdict_check(
        config, model, tokenizer, prompt, stop_ids, sharding, dtype, "validation"
    )
    describe(config, model, prompts, steps, prompt, why, dtype)
    params, rest = starting_point(config, model, sharding, lora, dtype)
    grpo = Grpo(
        config,
        model,
        prompts,
        sharding,
        params,
        rest,
        reference_weights(config, model, sharding, lora, rest, dtype),
        dtype=dtype,
        tokenizer=tokenizer,
        stop_ids=stop_ids,
        reward=reward,
        verdicts=verdicts,
    )
    return train(grpo, resumes=resumes)


def read_prompts(config: GrpoConfig, tokenizer: Any, prompt: JudgePrompt) -> PromptSet:
    """The prompts in tokens; what cannot be used goes to a file. Raises UserError."""
    rejects = RejectsFile(Path(config.workdir) / REJECTS)
    first = jax.process_index() == 0
    with bar(f"reading {config.data.train}", None, quiet=not first) as read:
        return open_prompts(
            config.data.train,
            tokenizer,
            prompt,
            max_prompt=config.data.max_prompt,
            both_orders=config.data.both_orders,
            progress=read.reach,
            rejects=rejects if first else None,
        )


def check_lengths(config: GrpoConfig, model: ModelConfig) -> None:
    """Refuse prompts that leave no room for a trace. Raises UserError."""
    prompt, response = config.data.max_prompt, config.rollout.max_response
    if prompt + response > model.max_position:
        raise UserError(
            f"--data.max_prompt={prompt} and --rollout.max_response={response} together pass the "
            f"{model.max_position:,} tokens that the model was made for; lower one of them"
        )
    if config.pack_length and config.pack_length < prompt + response:
        raise UserError(
            f"--pack_length={config.pack_length} does not hold a prompt of --data.max_prompt="
            f"{prompt} and a trace of --rollout.max_response={response} tokens"
        )


def check_reference(config: GrpoConfig, model: ModelConfig) -> None:
    """Refuse a reference of another architecture. Raises UserError."""
    if config.reference.model:
        other = load_config(config.reference.model)
        check_shapes(
            f"--reference.model={config.reference.model} is not of the architecture of "
            f"--model={config.model}",
            {tensor.path: tensor.shape(model) for tensor in tensors_of(model)},
            {tensor.path: tensor.shape(other) for tensor in tensors_of(other)},
        )


def reference_weights(
    config: GrpoConfig,
    model: ModelConfig,
    sharding: ShardingPlan,
    lora: Lora | None,
    rest: Params,
    dtype: str,
) -> Params | None:
    """The model to stay close to; with LoRA, that is what lies under the adapters."""
    if not config.objective.kl:
        return None
    if lora and not config.reference.model:
        return merge(rest)
    return first_params(
        config.reference.model or config.model,
        model,
        sharding,
        dtype=config.reference.dtype or dtype,
        seed=config.seed,
    )


def describe(
    config: GrpoConfig,
    model: ModelConfig,
    prompts: PromptSet,
    steps: int,
    prompt: JudgePrompt,
    why: str,
    dtype: str,
) -> None:
    """What is about to happen, in a few lines."""
    counts = prompts.counts
    dropped = ", ".join(f"{n:,} {why.replace('_', ' ')}" for why, n in counts.dropped.items() if n)
    log_primary(
        f"{len(prompts):,} prompts from {config.data.train}, {counts.lengths.mean:,.0f} tokens in "
        f"the mean, {counts.lengths.max:,} at most"
        + (f" (dropped: {dropped})" if dropped else "")
        + f"; prompt {prompt.style} ({prompt.sha256[:12]}), {why}"
    )
    log_primary(
        f"{steps:,} steps of {config.batch_size:,} prompts x {config.rollout.samples} traces of at "
        f"most {config.rollout.max_response:,} tokens, {config.updates} updates a step"
    )
    about = "no reference model" if not config.objective.kl else f"KL {config.objective.kl:g}"
    log_primary(
        f"{count_parameters(model):,} parameters, {config.optimizer.param_dtype}, computed in "
        f"{dtype}; {config.objective.reduction.replace('_', ' ')}, {about}"
    )
