"""What a step of reinforcement learning has sampled, what that cost, and what it reports."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from rmr1_jax.config import GrpoConfig
from rmr1_jax.data.prompt_set import Prompt
from rmr1_jax.judging import answer
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.rl.advantage import token_weights, zero_signal
from rmr1_jax.rl.batch import Group, PackedWork
from rmr1_jax.rl.loss import Sums
from rmr1_jax.sampling.scheduler import Sample
from rmr1_jax.training.flops import group_flops
from rmr1_jax.training.loop import Numbers
from rmr1_jax.training.step import Metrics


@dataclass(frozen=True)
class Experience:
    """N groups of G traces, with what they are worth."""

    prompts: list[tuple[int, Prompt]]
    """Each with its position in the stream of prompts."""
    samples: list[list[Sample]]
    texts: list[list[str]]
    """Special tokens kept."""
    rewards: Float[np.ndarray, "N G"]

    def __len__(self) -> int:
        return len(self.prompts)

    def only(self, chosen: Int[np.ndarray, " M"]) -> "Experience":
        pick = lambda values: [values[i] for i in chosen]  # noqa: E731
        return Experience(
            pick(self.prompts), pick(self.samples), pick(self.texts), self.rewards[chosen]
        )

    def plus(self, other: "Experience") -> "Experience":
        return Experience(
            self.prompts + other.prompts,
            self.samples + other.samples,
            self.texts + other.texts,
            np.concatenate([self.rewards, other.rewards]),
        )


def groups_of(
    experience: Experience, advantage: Float[np.ndarray, "N G"], config: GrpoConfig
) -> list[Group]:
    """The groups of a mini-batch; what their tokens weigh depends on all of them."""
    flat = [sample for group in experience.samples for sample in group]
    masked = config.reward.truncated == "mask"
    weights = token_weights(
        np.array([len(sample.tokens) for sample in flat]),
        config.objective.reduction,
        config.objective.pool,
        np.array([not masked or sample.finish_reason == "stop" for sample in flat]),
    ).reshape(len(experience), -1)
    return [
        Group(
            prompt=prompt.tokens,
            responses=tuple(sample.tokens for sample in group),
            sampler_logprobs=tuple(sample.sampled_logprobs for sample in group),
            advantages=worth.astype(np.float32),
            weights=weight.astype(np.float32),
        )
        for (_, prompt), group, worth, weight in zip(
            experience.prompts, experience.samples, advantage, weights, strict=True
        )
    ]


@dataclass
class Clock:
    """Seconds by activity."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[activity] = self.seconds.get(activity, 0.0) + spent


# Of the sums of an update, those that are means over its mini-batch.
MEANS = ("loss", "policy_loss", "kl", "entropy")


def over_updates(each: Sequence[Metrics]) -> Metrics:
    """The metrics of a step from those of its updates (on the host).

    `bad_steps` are the most in a row that any of them ends: a good update after them is no excuse.
    """
    sums = each[0].sums
    for metrics in each[1:]:
        sums = sums.plus(metrics.sums)
    means = {name: getattr(sums, name) / len(each) for name in MEANS}
    return each[-1]._replace(
        sums=sums._replace(**means),
        gradient_norm=jnp.stack([metrics.gradient_norm for metrics in each]).mean(),
        finite=jnp.stack([metrics.finite for metrics in each]).all(),
        bad_steps=jnp.stack([metrics.bad_steps for metrics in each]).max(),
    )


def loss_numbers(sums: Sums) -> Numbers:
    """What a step reports of its sums."""
    tokens = max(float(sums.tokens), 1.0)
    return {
        "loss": float(sums.loss),
        "policy_loss": float(sums.policy_loss),
        "kl": float(sums.kl),
        "entropy": float(sums.entropy),
        "ratio": float(sums.ratio) / tokens,
        "clipped_low": float(sums.clipped_low) / tokens,
        "clipped_high": float(sums.clipped_high) / tokens,
        "mismatch_mean": float(sums.mismatch) / tokens,
        "mismatch_outside": float(sums.mismatch_far) / tokens,
        "mismatch_max": float(sums.mismatch_highest),
    }


def rollout_numbers(experience: Experience) -> Numbers:
    """What a step reports of all that it sampled."""
    lengths = np.array([len(s.tokens) for group in experience.samples for s in group])
    cut = [s.finish_reason == "length" for group in experience.samples for s in group]
    verdicts = [answer(text, "reward").verdict for group in experience.texts for text in group]
    labels = [
        prompt.label
        for (_, prompt), group in zip(experience.prompts, experience.samples, strict=True)
        for _ in group
    ]
    right = [verdict == label for verdict, label in zip(verdicts, labels, strict=True)]
    return {
        "reward": float(experience.rewards.mean()),
        "accuracy": float(np.mean(right)),
        "format": float(np.mean([verdict is not None for verdict in verdicts])),
        "response_tokens": float(lengths.mean()),
        "response_tokens_max": int(lengths.max()),
        "truncated": float(np.mean(cut)),
        "zero_signal": float(zero_signal(experience.rewards).mean()),
        "sampled_tokens": int(lengths.sum()),
    }


def work_numbers(
    model: ModelConfig, experience: Experience, sampled_tokens: int, clock: Clock, passes: int
) -> Numbers:
    """Speeds, and the arithmetic ("flops") that learning from this experience needs, its own
    rollout included; `sampled_tokens` were written in all."""
    prompts = np.array([len(prompt.tokens) for _, prompt in experience.prompts])
    responses = np.array([[len(s.tokens) for s in group] for group in experience.samples])
    tokens, seconds = int(prompts.sum() + responses.sum()), clock.seconds
    learning = seconds["update"] + seconds["logprobs"]
    return {
        "tokens": tokens,
        "tokens_per_second_rollout": sampled_tokens / max(seconds["rollout"], 1e-9),
        "tokens_per_second_update": tokens / max(learning, 1e-9),
        "flops": passes * group_flops(model, prompts, responses),
    }


def packing_numbers(work: Iterable[PackedWork]) -> Numbers:
    """What the layout of a step costs: its padding, and its share of the naive layout."""
    work = list(work)
    computed, tokens, naive = (sum(column) for column in zip(*work, strict=True))
    return {
        "padding": 1 - tokens / max(computed, 1),
        "share_of_naive": computed / max(naive, 1),
    }
