"""The objective of stage 2: GRPO (arXiv 2402.03300) as RM-R1 trains with it (spec §4.5).

  L = 1/n  sum_i  w_i  sum_t  [ max(-A_i r_it, -A_i clip(r_it, 1 - 0.2, 1 + 0.2)) + 0.001 k_it ]

  r_it = p(y_it) / p_old(y_it)                 p(y_it), short for p(y_it | x_i, y_i<t), is trained
  k_it = exp(d_it) - d_it - 1, at most 10      d_it = log p_ref(y_it) - log p(y_it)

A_i compares response i with the others to its prompt. p_old is the model before the first update on
these samples, p_ref the model before stage 2. The weights w come with the batch, and say what is
averaged (`advantage.token_weights`); n is the sum of w over all tokens of a mini-batch.

Options, none of them published: other bounds for the two sides ("clip higher", DAPO); an entropy
bonus, L - c mean(H); one ratio a response (GSPO); and, where the sampler's probabilities p_s differ
from the trainer's, a factor min(p_old / p_s, cap) for each token of the first term.

In a `GroupBatch` the responses to a prompt share one copy of it, which changes nothing here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from rmr1_jax.config import GrpoConfig
from rmr1_jax.config.grpo_config import ObjectiveConfig
from rmr1_jax.data.packed_batch import GroupBatch
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Transformer
from rmr1_jax.training.metrics import Numbers
from rmr1_jax.training.nll import predict_targets
from rmr1_jax.training.sharding_plan import ShardingPlan
from rmr1_jax.training.step import Metrics, Objective, batch_logprobs

_HIGHEST_KL = 10.0
_LIKELY = (0.9, 1.1)
"""Ratios of trainer to sampler outside of these are counted."""


@dataclass(frozen=True)
class Settings(ObjectiveConfig):
    """What is fixed when compiling; the defaults are the published numbers."""

    on_policy: bool = False
    """p_old is p itself, which is so where a step has one update; `old_logprobs` is not read."""


class Sums(NamedTuple):
    """What adds up over the micro-batches of a mini-batch; nothing here has a gradient.

    The first four are shares of means with the weights w: loss = policy_loss + kl coefficient * kl
    - entropy coefficient * entropy. The others are over tokens: divide them by `tokens`.
    """

    loss: Float[Array, ""]
    policy_loss: Float[Array, ""]
    kl: Float[Array, ""]
    """0 where there is no reference model."""
    entropy: Float[Array, ""]
    """By default the mean of -log p: an estimate, unbiased for samples at temperature 1."""
    tokens: Float[Array, ""]
    ratio: Float[Array, ""]
    clipped_low: Float[Array, ""]
    """Tokens with A < 0 whose ratio fell below 1 - clip_low: they no longer teach."""
    clipped_high: Float[Array, ""]
    """Tokens with A > 0 whose ratio rose above 1 + clip_high."""
    mismatch: Float[Array, ""]
    """|log p_old - log p_s|, trainer and sampler on the same weights."""
    mismatch_far: Float[Array, ""]
    """Tokens with p_old / p_s outside [0.9, 1.1]."""
    mismatch_highest: Float[Array, ""]
    """The highest |log p_old - log p_s|; a maximum, not a sum."""

    @classmethod
    def zero(cls) -> "Sums":
        return cls(*(jnp.zeros(()) for _ in cls._fields))

    def plus(self, other: "Sums") -> "Sums":
        highest = jnp.maximum(self.mismatch_highest, other.mismatch_highest)
        added = Sums(*(a + b for a, b in zip(self, other, strict=True)))
        return added._replace(mismatch_highest=highest)


def grpo(
    model: Transformer,
    micro: GroupBatch,
    weight_of_step: Float[Array, ""],
    *,
    settings: Settings,
    **options: Any,
) -> tuple[Float[Array, ""], Sums]:
    """The loss of one micro-batch (leaves [R, ...]) as its share of the mini-batch's, and the sums
    to report. Both are 0 where nothing has a weight. `options` are those of `predict_targets`.
    """
    if settings.entropy > 0:
        logprobs, _, entropy = predict_targets(model, micro, entropy=True, **options)
    else:
        logprobs, _ = predict_targets(model, micro, **options)
        entropy = -jax.lax.stop_gradient(logprobs)
    now = jax.lax.stop_gradient(logprobs)
    valid = micro.loss_weights > 0
    old = jnp.where(valid, now if settings.on_policy else micro.old_logprobs, 0.0)
    weights = micro.loss_weights / jnp.where(weight_of_step == 0, 1.0, weight_of_step)
    mean = lambda each: jnp.sum(weights * each)  # noqa: E731
    count = partial(jnp.sum, where=valid, dtype=jnp.float32)

    ratio = jnp.exp(_log_ratio(logprobs, old, micro.loss_response_ids, valid, settings))
    clipped = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    plain, bounded = -micro.advantages * ratio, -micro.advantages * clipped
    policy = jnp.maximum(plain, bounded)
    off = jnp.where(valid, old - micro.sampler_logprobs, 0.0)
    if settings.tis_cap:
        policy *= jnp.minimum(jnp.exp(off), settings.tis_cap)
    policy_loss = loss = mean(policy)
    kl = jnp.zeros(())
    if settings.kl:
        kl = mean(low_variance_kl(jnp.where(valid, micro.reference_logprobs - logprobs, 0.0)))
        loss += settings.kl * kl
    if settings.entropy > 0:
        loss -= settings.entropy * mean(entropy)

    low, high = _LIKELY
    sums = Sums(
        loss=loss,
        policy_loss=policy_loss,
        kl=kl,
        entropy=mean(entropy),
        tokens=count(valid),
        ratio=count(ratio),
        clipped_low=count((bounded > plain) & (ratio < 1)),
        clipped_high=count((bounded > plain) & (ratio > 1)),
        mismatch=count(jnp.abs(off)),
        mismatch_far=count((jnp.exp(off) < low) | (jnp.exp(off) > high)),
        mismatch_highest=jnp.max(jnp.abs(off)),
    )
    return loss, jax.lax.stop_gradient(sums)


def token_logprobs(model: Transformer, micro: GroupBatch, **options: Any) -> Float[Array, "R W"]:
    """log p of each target of one micro-batch (leaves [R, ...]), 0 where it has no weight."""
    logprobs: Array = predict_targets(model, micro, **options)[0]
    return logprobs


def low_variance_kl(difference: Float[Array, "..."]) -> Float[Array, "..."]:
    """exp(d) - d - 1 with d = log p_ref - log p: an estimate of KL(p, p_ref) that is never
    negative. Clamped to [-10, 10]; beyond, its gradient is 0.
    """
    # Above 20 the result is clamped anyway, and exp might overflow, whose gradient is no number.
    difference = jnp.minimum(difference, 2 * _HIGHEST_KL)
    return jnp.clip(jnp.expm1(difference) - difference, -_HIGHEST_KL, _HIGHEST_KL)


def _log_ratio(
    logprobs: Float[Array, "R W"],
    old: Float[Array, "R W"],
    response_ids: Int[Array, "R W"],
    valid: Bool[Array, "R W"],
    settings: Settings,
) -> Float[Array, "R W"]:
    """log p / p_old of each token, or of its whole response (GSPO, arXiv 2507.18071, its token
    form): the value is the mean over the response, the gradient that of the token."""
    if settings.ratio == "token":
        return logprobs - old
    now = jax.lax.stop_gradient(logprobs)
    per_response = jax.vmap(partial(jax.ops.segment_sum, num_segments=response_ids.shape[1] + 1))
    total, tokens = per_response(now - old, response_ids), per_response(valid * 1.0, response_ids)
    means = jnp.take_along_axis(total / jnp.maximum(tokens, 1), response_ids, axis=1)
    return means + (logprobs - now)


def grpo_objective(config: GrpoConfig, sharding: ShardingPlan) -> Objective:
    """The clipped policy gradient."""
    return partial(grpo, settings=settings_of(config), **sharding.objective_options(config.remat))


def logprob_pass(
    config: GrpoConfig, model: ModelConfig, sharding: ShardingPlan, dtype: DTypeLike
) -> Any:
    """The compiled (params, batch, base) -> log p of each target; of old policy and reference."""
    return jax.jit(
        partial(
            batch_logprobs,
            config=model,
            dtype=dtype,
            token_logprobs=partial(token_logprobs, **sharding.objective_options(config.remat)),
        ),
        out_shardings=sharding.batch,
        compiler_options=sharding.compiler_options,
    )


def settings_of(config: GrpoConfig) -> Settings:
    """The objective's settings."""
    return Settings(**vars(config.objective), on_policy=config.updates == 1)


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
