"""Random mini-batches of GRPO, packed and one response a row, for plain references."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmr1_jax.data.packed_batch import GroupBatch
from rmr1_jax.rl.advantage import Reduction, advantages, token_weights
from rmr1_jax.rl.batch import Group, pack_groups

POOL = 4
PerToken = tuple[np.ndarray, ...]


def keeping_gradients() -> optax.GradientTransformation:
    """Passes gradients on, and keeps them as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda gradients, state, params=None: (gradients, gradients),
    )


@dataclass(frozen=True)
class Job:
    """One mini-batch: groups, and what the old and the reference model make of them."""

    groups: list[Group]
    old: list[PerToken]
    reference: list[PerToken]

    def packed(self, pack_length: int, rows: int, micro_batches: int) -> GroupBatch:
        """In as many micro-batches, whatever is needed: the last may hold nothing."""

        def pack(groups: Sequence[Group]) -> GroupBatch:
            batch = pack_groups(groups, pack_length=pack_length, rows=rows)
            missing = micro_batches - len(batch.tokens)
            assert missing >= 0
            return GroupBatch(*(np.pad(leaf, ((0, missing), (0, 0), (0, 0))) for leaf in batch))

        def slots(values: list[PerToken]) -> np.ndarray:
            """Where packing puts what is known of each token."""
            groups = zip(self.groups, values, strict=True)
            return pack([replace(g, sampler_logprobs=v) for g, v in groups]).sampler_logprobs

        return pack(self.groups)._replace(
            old_logprobs=slots(self.old), reference_logprobs=slots(self.reference)
        )

    def naive(self, rows: int, pack_length: int) -> GroupBatch:
        """Each response alone in its row, with its own copy of the prompt."""
        batch = GroupBatch(
            *(
                np.zeros((1, rows, pack_length), leaf.dtype)
                for leaf in pack_groups([], pack_length=pack_length, rows=1)
            )
        )
        row = 0
        for group, olds, references in zip(self.groups, self.old, self.reference, strict=True):
            for i, response in enumerate(group.responses):
                tokens, prompt = np.concatenate([group.prompt, response]), len(group.prompt)
                batch.tokens[0, row, : len(tokens)] = tokens
                batch.positions[0, row, : len(tokens)] = np.arange(len(tokens))
                batch.segment_ids[0, row, : len(tokens)] = 1
                here = np.s_[0, row, : len(response)]
                batch.loss_positions[here] = np.arange(prompt - 1, len(tokens) - 1)
                batch.loss_targets[here] = response
                batch.loss_response_ids[here] = 1
                batch.loss_weights[here] = group.weights[i]
                batch.advantages[here] = group.advantages[i]
                batch.sampler_logprobs[here] = group.sampler_logprobs[i]
                batch.old_logprobs[here] = olds[i]
                batch.reference_logprobs[here] = references[i]
                row += 1
        return batch


def random_groups(
    rng: np.random.Generator,
    number: int,
    reduction: Reduction,
    *,
    samples: int = 4,
    prompt: int = 9,
    response: int = 12,
    masked: float = 0.0,
) -> list[Group]:
    """Ragged groups whose rewards differ."""
    groups = []
    for _ in range(number):
        lengths = rng.integers(1, response + 1, samples)
        rewards = np.where(np.arange(samples) < rng.integers(1, samples), 1.0, -1.0)
        groups.append(
            Group(
                prompt=rng.integers(3, 96, int(rng.integers(1, prompt + 1))),
                responses=tuple(rng.integers(3, 96, length) for length in lengths),
                sampler_logprobs=tuple(rng.normal(-4.9, 0.5, length) for length in lengths),
                advantages=advantages(rng.permutation(rewards)[None])[0],
                weights=np.ones(samples),
            )
        )
    lengths = np.array([len(r) for group in groups for r in group.responses])
    weights = token_weights(lengths, reduction, POOL, rng.random(len(lengths)) >= masked)
    return [
        replace(group, weights=own)
        for group, own in zip(groups, weights.reshape(number, samples), strict=True)
    ]
