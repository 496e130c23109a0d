"""Rollout: groups of traces from the current weights, and what a step keeps of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from rmr1_jax.config import Sampling
from rmr1_jax.data.prompt_set import Prompt
from rmr1_jax.errors import UserError
from rmr1_jax.judging import answer
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.sampling.request_queue import worth_sharing
from rmr1_jax.sampling.scheduler import Request, Sample, Scheduler, Work
from rmr1_jax.training.metrics import Numbers
from rmr1_jax.training.sharding_plan import ShardingPlan, decoding_mesh, make_reshard

CPU_SLOTS, ACCELERATOR_SLOTS = 64, 256  # where a configuration leaves them to the machine


class Rollout:
    """Samples a group for each prompt of a step: `reshard`, then `sample` as often as wanted.

    Every process of a run calls both, with the same arguments, and gets all samples.

    Args:
      model: the architecture.
      sharding: of the run.
      dtype: to decode in.
      group_size: samples a prompt.
      slots: samples written at the same time, over all devices.
      max_new_tokens: the longest response; less where the model's context ends before.
      stop_ids: tokens that end a response.
      prefix: tokens that prompts begin with, computed once a call of `sample` for all of them.
      sampling: the distribution that is drawn from.

    Attributes:
      engine: what samples.
      reshard_seconds: what the last `reshard` took, until the weights were there.
    """

    def __init__(
        self,
        model: ModelConfig,
        sharding: ShardingPlan,
        *,
        dtype: DTypeLike,
        group_size: int,
        slots: int,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        prefix: Sequence[int] = (),
        sampling: Sampling,
    ) -> None:
        self.model, self.max_new_tokens, self.sampling = model, max_new_tokens, sampling
        self.stop_ids, self.prefix = tuple(sorted(set(stop_ids))), worth_sharing(prefix)
        self.reshard_seconds = 0.0
        self._reshard = make_reshard(model, sharding, dtype)
        self.engine = Scheduler(
            model,
            {},
            slots=slots,
            group_size=group_size,
            mesh=decoding_mesh(sharding),
        )

    @property
    def work(self) -> Work:
        """What the last `sample` did, exactly."""
        return self.engine.work

    def reshard(self, params: Params) -> None:
        """Sample with these weights (all of them, with adapters if there are any) from now on."""
        self.release()  # or old and new ones would be held at the same time
        start = time.perf_counter()
        self.engine.programs.weights = jax.block_until_ready(self._reshard(params))
        self.reshard_seconds = time.perf_counter() - start

    def release(self) -> None:
        """Give up the weights: an update has no use for them. `reshard` before sampling again."""
        self.engine.programs.weights = {}

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        indices: Sequence[int],
        seed: int,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Sample]]:
        """A group of samples for each prompt, in the order of the prompts.

        Tokens depend on weights, prompt, `seed` and the prompt's index, not on what is sampled
        beside them or was sampled before (docs/decisions/005).

        Args:
          prompts: each leaves room for a token in the model's context, or UserError names it.
          indices: of each prompt, its identity in the random stream.
          seed: of the run.
          on_progress: called every few dozen steps with tokens so far and finished groups.
        """
        requests = [
            self._request(prompt, index, seed)
            for prompt, index in zip(prompts, indices, strict=True)
        ]
        groups: dict[int, list[Sample]] = {}

        def report(work: Work) -> None:
            if on_progress is not None:
                on_progress(work.live_row_steps, len(groups))

        for position, samples in self.engine.generate(
            requests,
            max_new_tokens=self.max_new_tokens,
            after_chunk=report,
            prefix=self.prefix,
        ):
            groups[position] = samples
        report(self.work)
        return [groups[position] for position in range(len(prompts))]

    def _request(self, prompt: Prompt, index: int, seed: int) -> Request:
        room = self.model.max_position - len(prompt.tokens)
        if room < 1:
            raise UserError(
                f"prompt {prompt.id}: its {len(prompt.tokens)} tokens leave no room for a response "
                f"in the model's context of {self.model.max_position}; drop it, or shorten it"
            )
        return Request(
            tokens=prompt.tokens.tolist(),
            max_new_tokens=min(self.max_new_tokens, room),
            stop_ids=self.stop_ids,
            seed=seed,
            index=index,
            sampling=self.sampling,
        )


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
        "sampled_tokens": int(lengths.sum()),
    }
