"""What a step of reinforcement learning has sampled, and what that cost."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from rmr1_jax.config import GrpoConfig
from rmr1_jax.data.prompt_set import Prompt
from rmr1_jax.rl.advantage import token_weights
from rmr1_jax.rl.batch import Group
from rmr1_jax.sampling.scheduler import Sample


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
