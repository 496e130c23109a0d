"""From the rewards of a group to advantages, and from lengths to what each token weighs.

Source: spec §4.5 (verl's `compute_grpo_outcome_advantage` and `masked_mean`). NumPy on the host.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

Reduction = Literal["sequence_mean", "pooled_mean", "token_mean"]


def advantages(
    rewards: Float[np.ndarray, "N G"],
    *,
    normalise: bool = True,
    leave_one_out: bool = False,
    epsilon: float = 1e-6,
) -> Float[np.ndarray, "N G"]:
    """How much better each response is than the G to its prompt: (r - mean) / (std + epsilon).

    As published, the deviation is the unbiased one (n - 1), a group of one has mean 0 and deviation
    1, and a group of equal rewards gets exactly 0.

    Args:
      rewards: one group a row.
      normalise: divide by the deviation; without it, Dr. GRPO (arXiv 2503.20783).
      leave_one_out: take the mean of the other responses (RLOO, arXiv 2402.14740), which makes the
        difference n / (n - 1) times as large.
      epsilon: added to the deviation.
    """
    rewards = np.asarray(rewards, np.float64)
    size = rewards.shape[1]
    if size == 1:
        return rewards / (1 + epsilon) if normalise else rewards.copy()
    difference = rewards - rewards.mean(1, keepdims=True)
    if leave_one_out:
        difference *= size / (size - 1)
    if normalise:
        difference /= rewards.std(1, ddof=1, keepdims=True) + epsilon
    # The mean of equal numbers may be off by a rounding, which a tiny deviation makes large.
    return np.where(zero_signal(rewards)[:, None], 0.0, difference)


def zero_signal(rewards: Float[np.ndarray, "N G"]) -> Bool[np.ndarray, " N"]:
    """Groups that teach nothing, since all rewards are exactly equal.

    A group of one is not such a group: its advantage is its reward.
    """
    return (rewards == rewards[:, :1]).all(1) & (rewards.shape[1] > 1)


def token_weights(
    lengths: Int[np.ndarray, " M"],
    reduction: Reduction,
    pool: int,
    included: Bool[np.ndarray, " M"],
) -> Float[np.ndarray, " M"]:
    """What each token of each response of a mini-batch weighs.

    With them, loss = sum(weight * token loss) / sum(weight), over all tokens, is
      sequence_mean  the mean over responses of each one's mean over its tokens (verl, micro 1);
      pooled_mean    the mean over pools, `pool` responses that follow each other in this order, of
                     the mean over all tokens of the pool (verl, micro 4); the last may be smaller;
      token_mean     the mean over all tokens.
    Responses that are not `included` weigh 0, and a pool of only such ones does not count.
    """
    counted = np.where(included, lengths, 0).astype(np.float64)
    if reduction == "token_mean":
        return (counted > 0).astype(np.float64)
    pools = np.arange(len(counted)) // (pool if reduction == "pooled_mean" else 1)
    tokens = np.bincount(pools, counted)[pools]
    return np.where(counted > 0, 1 / np.maximum(tokens, 1), 0.0)
