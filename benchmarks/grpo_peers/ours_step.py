"""Our own GRPO steps: `rl.trainer.Grpo`, as `--stage=grpo` runs it, in a process like the
peers' and forced to the same lengths."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from transformers import AutoTokenizer

from benchmarks.grpo_peers.conversation import Benchmark, Job, Measured, reward
from rmr1_jax.config import GrpoConfig, OptimizerConfig
from rmr1_jax.config.grpo_config import ObjectiveConfig, PromptsConfig, RolloutConfig
from rmr1_jax.data.prompt_set import PromptCounts, PromptSet
from rmr1_jax.data.token_cache import Lengths
from rmr1_jax.main import quiet_libraries
from rmr1_jax.models.checkpoint import load_config
from rmr1_jax.rl.trainer import Grpo
from rmr1_jax.sampling import decode_loop as engine
from rmr1_jax.sampling.sampler import Sampled, SamplingParams
from rmr1_jax.training.sharding_plan import make_sharding_plan
from rmr1_jax.training.training_run import first_params

MANY = 1_000_000  # steps; the benchmark says when it has enough
FORCED = 2.0  # in place of a uniform number: this row has come to its length
PHASE = {"reshard": "rollout", "rollout": "rollout", "reward": "reward", "logprobs": "reference"}


def main() -> None:
    benchmark, measured = Benchmark(), Measured()
    quiet_libraries()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    job = benchmark.job
    force_lengths(job)
    run = make_run(job)
    own_sample = run._rollout.sample

    def sample(*args: Any, **options: Any) -> Any:
        groups = own_sample(*args, **options)
        measured.lengths = [len(sample.tokens) for group in groups for sample in group]
        return groups

    run._rollout.sample = sample  # type: ignore[method-assign]
    benchmark.ready("jax", "flax")
    state = run.state
    while benchmark.wants_step():
        measured.begin()
        state, _ = run.take_step(state)
        jax.block_until_ready(state)
        for activity, seconds in run._clock.seconds.items():
            if activity in PHASE:
                measured.count(PHASE[activity], seconds)
        benchmark.answer(measured.end())


def make_run(job: Job) -> Grpo:
    config = GrpoConfig(
        model=job.model,
        data=PromptsConfig(max_prompt=max(map(len, job.prompts))),
        batch_size=len(job.prompts),
        mini_batch=len(job.prompts),
        rollout=RolloutConfig(
            samples=job.group_size,
            max_response=job.max_new_tokens,
            temperature=job.temperature,
            max_num_seqs=job.rows,
        ),
        objective=ObjectiveConfig(clip_low=job.clip, clip_high=job.clip, kl=job.kl),
        epochs=MANY,
        optimizer=OptimizerConfig(
            learning_rate=job.learning_rate,
            beta2=0.999,
            weight_decay=job.weight_decay,
            clip_norm=job.clip_norm,
            warmup=0.0,
            final_lr_ratio=1.0,
        ),
        micro_batch_size=1,
        remat="none",  # nobody computes activations twice
        dtype="float32",
    )
    model = load_config(job.model)
    sharding = make_sharding_plan(model, config.mesh, sequence_parallel=False)

    def weights() -> Any:
        return first_params(job.model, model, sharding, dtype="float32", seed=0)

    return Grpo(
        config,
        model,
        prompt_set(job),
        sharding,
        weights(),
        {},
        weights(),
        dtype="float32",
        tokenizer=AutoTokenizer.from_pretrained(job.model),
        stop_ids=[job.stop_id],
        reward=lambda sampled: reward(sampled.response),
    )


def prompt_set(job: Job) -> PromptSet:
    """The job's prompts. Which answer is right, the job's reward does not ask."""
    lengths = np.array([len(prompt) for prompt in job.prompts])
    count = len(lengths)
    return PromptSet(
        tokens=np.concatenate([np.array(prompt, np.int32) for prompt in job.prompts]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.zeros(count, np.int8),
        ids=tuple(map(str, range(count))),
        counts=PromptCounts(count, count, {}, Lengths.of(lengths)),
    )


def force_lengths(job: Job) -> None:
    """The end token for rows that have come to their length, anything else for the others.

    Which row that is, the engine tells where it asks for a sample's random number. A step asks in
    an order of its own, so that a prompt may get another prompt's lengths.
    """
    lengths = jnp.asarray(job.lengths)
    banned = jnp.asarray(job.banned_ids)
    own_uniform, own_sample = engine.request_uniform, engine.sample

    def request_uniform(seed: Array, prompt: Array, sample_index: Array, position: Array) -> Array:
        length = lengths[prompt % len(job.prompts), sample_index]
        uniform = own_uniform(seed, prompt, sample_index, position)
        return jnp.where(position + 1 == length, FORCED, uniform)

    def sample(
        logits: Float[Array, "B V"], uniform: Float[Array, "B"], params: SamplingParams
    ) -> Sampled:
        ends = uniform == FORCED
        allowed = logits.at[:, banned].set(-jnp.inf)
        drawn = own_sample(allowed, jnp.where(ends, 0.0, uniform), params)
        token = jnp.where(ends, job.stop_id, drawn.token)
        logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
        # The policy's, without the force: what the update compares with.
        return Sampled(token, logprob, logprob)

    engine.request_uniform, engine.sample = request_uniform, sample


if __name__ == "__main__":
    main()
