"""What a step of reinforcement learning has sampled, and what that cost."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from rmr1_jax.data.prompt_set import Prompt
from rmr1_jax.sampling.driver import Sample


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

    def only(self, chosen: Sequence[int]) -> "Experience":
        pick = lambda values: [values[i] for i in chosen]  # noqa: E731
        rewards = self.rewards[np.asarray(chosen, np.int64)]
        return Experience(pick(self.prompts), pick(self.samples), pick(self.texts), rewards)

    def plus(self, other: "Experience") -> "Experience":
        return Experience(
            self.prompts + other.prompts,
            self.samples + other.samples,
            self.texts + other.texts,
            np.concatenate([self.rewards, other.rewards]),
        )


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
