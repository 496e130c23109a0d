"""GRPO steps of Tunix's GRPOLearner on the CPU, with its in-graph sampler. Runs in the environment
that `--prepare` made for it, and imports nothing of ours but the conversation.

Everything is Tunix's but for: prompts come as token ids, and the lengths of responses are forced by
the end token, which nothing can draw before and only it can be drawn at the end. Tunix cuts that
token off before the loss.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from transformers import AutoTokenizer
from tunix.generate import sampler
from tunix.models.llama3 import model as llama
from tunix.models.llama3.params import (
    create_model_from_safe_tensors,
)
from tunix.rl.grpo.grpo_learner import (
    GRPOConfig,
    GRPOLearner,
)
from tunix.rl.rl_cluster import (
    ClusterConfig,
    RLCluster,
    RLTrainingConfig,
    Role,
)
from tunix.rl.rollout.base_rollout import RolloutConfig

from benchmarks.grpo_peers.conversation import Benchmark, Job, Measured, reward

MANY = 1_000_000  # steps; the benchmark says when it has enough


def main() -> None:
    benchmark = Benchmark()
    measured = Measured()
    force_lengths(benchmark.job)
    cluster, learner = make_learner(benchmark.job)
    time_phases(cluster, learner, measured)
    benchmark.ready("google-tunix", "jax", "flax")
    learner.train(steps(benchmark, measured, cluster))


def steps(benchmark: Benchmark, measured: Measured, cluster: Any) -> Iterator[dict[str, Any]]:
    """The batch again and again: its next use is the end of a step."""
    while benchmark.wants_step():
        measured.begin()
        yield {"prompts": np.array([str(i) for i in range(len(benchmark.job.prompts))])}
        jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))
        benchmark.answer(measured.end())


def make_learner(job: Job) -> tuple[Any, Any]:
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    width = max(map(len, job.prompts))
    cluster = RLCluster(
        actor=load(job.model, mesh),
        reference=load(job.model, mesh),
        tokenizer=Prompts(job),
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys((Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh),
            rollout_engine="vanilla",
            training_config=RLTrainingConfig(
                actor_optimizer=optax.chain(
                    optax.clip_by_global_norm(job.clip_norm),
                    optax.adamw(job.learning_rate, b2=0.999, weight_decay=job.weight_decay),
                ),
                max_steps=MANY,
                eval_every_n_steps=MANY,
                mini_batch_size=len(job.prompts),
                train_micro_batch_size=job.micro_prompts,
                rollout_micro_batch_size=len(job.prompts),
                compute_logps_micro_batch_size=job.micro_prompts,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=job.max_new_tokens,
                max_prompt_length=width,
                kv_cache_size=width + job.max_new_tokens,
                temperature=job.temperature,
                top_p=1.0,
                eos_tokens=[job.stop_id],
            ),
        ),
    )
    learner = GRPOLearner(
        rl_cluster=cluster,
        reward_fns=rewards,
        algo_config=GRPOConfig(
            num_generations=job.group_size,
            num_iterations=1,
            beta=job.kl,
            epsilon=job.clip,
            kl_loss_mode="low_var_kl",
            loss_agg_mode="sequence-mean-token-mean",
        ),
    )
    return cluster, learner


def load(directory: str, mesh: Mesh) -> Any:
    """A Llama of any size, in fp32."""
    found = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    if found["model_type"] != "llama":
        raise SystemExit(f"{directory}: only models of type llama, not {found['model_type']}")
    heads = found["num_attention_heads"]
    config = llama.ModelConfig(
        num_layers=found["num_hidden_layers"],
        vocab_size=found["vocab_size"],
        embed_dim=found["hidden_size"],
        hidden_dim=found["intermediate_size"],
        num_heads=heads,
        head_dim=found.get("head_dim") or found["hidden_size"] // heads,
        num_kv_heads=found.get("num_key_value_heads", heads),
        # Its attention takes 1,000,000 whatever is said here; the work is the same.
        rope_theta=1_000_000,
        norm_eps=found["rms_norm_eps"],
        weight_tying=found.get("tie_word_embeddings", False),
    )
    return create_model_from_safe_tensors(directory, config, mesh, dtype=jnp.float32)


class Prompts:
    """A tokenizer for which "3" stands for prompt 3."""

    def __init__(self, job: Job) -> None:
        self._job, self._tokenizer = job, AutoTokenizer.from_pretrained(job.model)

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(self._job.prompts[int(text)])

    def decode(self, ids: list[int], **_: Any) -> str:
        return str(self._tokenizer.decode(ids))

    def bos_id(self) -> None:
        return None  # none is put in front

    def eos_id(self) -> int:
        return self._job.stop_id

    def pad_id(self) -> int:
        return self._job.pad_id


def force_lengths(job: Job) -> None:
    """The end token for rows that have come to their length, anything else for the others."""
    lengths = jnp.asarray(job.lengths).flatten()
    banned = jnp.asarray(job.banned_ids)
    own = sampler.Sampler._sample

    def sample(self: Any, logits: jax.Array, eos: jax.Array, cache: Any, sampler_state: Any) -> Any:
        made = sampler_state.decoding_step + 1 - sampler_state.num_input_tokens
        scores = logits[:, -1].at[:, banned].set(-jnp.inf)
        end = jnp.where(jnp.arange(scores.shape[-1]) == job.stop_id, 0.0, -jnp.inf)
        scores = jnp.where((lengths == made + 1)[:, None], end, scores)
        return own(self, scores[:, None], eos, cache, sampler_state)

    sampler.Sampler._sample = sample


def time_phases(cluster: Any, learner: Any, measured: Measured) -> None:
    generate = measured.timing("rollout", cluster.generate)

    def rollout(*args: Any, **options: Any) -> Any:
        output = generate(*args, **options)
        measured.lengths = [len(tokens) + 1 for tokens in output.tokens]  # 1: the end token
        return output

    cluster.generate = rollout
    cluster.get_ref_per_token_logps = measured.timing(
        "reference", cluster.get_ref_per_token_logps, jax.block_until_ready
    )
    learner._compute_rewards = measured.timing("reward", learner._compute_rewards)


def rewards(completions: list[str], **_: Any) -> list[float]:
    return [reward(completion) for completion in completions]


if __name__ == "__main__":
    main()
