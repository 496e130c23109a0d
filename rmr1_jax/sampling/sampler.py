"""From logits to the next token, with nothing static but shapes.

Temperature, top-p, top-k and min-p are arrays with one value per row, so changing them never
recompiles. Truncation searches for a threshold instead of sorting the vocabulary. The draw inverts
the cumulative distribution in two levels (blocks, then tokens), so that a row needs one uniform
number instead of one per vocabulary entry. Only the sums of blocks are stored; the weights within
the chosen block are computed again.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

BLOCK = 128  # the lanes of a TPU; the vocabularies of Qwen and Llama are multiples of it


class SamplingParams(NamedTuple):
    """One value per row. Truncation is applied as in transformers: top-k, top-p, then min-p."""

    temperature: Float[Array, "B"]  # 0 is greedy
    top_p: Float[Array, "B"]  # 1 is off
    top_k: Int[Array, "B"]  # 0 is off
    min_p: Float[Array, "B"]  # 0 is off


class Sampled(NamedTuple):
    token: Int[Array, "B"]
    logprob: Float[Array, "B"]  # under the model (temperature 1, no truncation)
    sampled_logprob: Float[Array, "B"]  # under the sampling distribution; 0 if greedy


def sample(
    logits: Float[Array, "B V"], uniform: Float[Array, "B"], params: SamplingParams
) -> Sampled:
    """Draw one token per row.

    Args:
      logits: fp32.
      uniform: a number in [0, 1) for each row, the only source of randomness.
      params: traced values.
    """
    greedy = params.temperature <= 0
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    maximum = logits.max(axis=-1)
    token, sampled_logprob = jax.lax.cond(
        jnp.all(greedy),
        lambda: (best, jnp.zeros_like(uniform)),
        lambda: _draw(logits, maximum, uniform, params),
    )
    token = jnp.where(greedy, best, token)
    return Sampled(
        token=token,
        logprob=_at(logits, token) - jax.nn.logsumexp(logits, axis=-1),
        sampled_logprob=jnp.where(greedy, 0.0, sampled_logprob),
    )


def request_uniform(
    seed: UInt32[Array, "B"],
    prompt: Int[Array, "B"],
    sample_index: Int[Array, "B"],
    position: Int[Array, "B"],
) -> Float[Array, "B"]:
    """A uniform number that depends only on (seed, prompt, sample, position)."""

    def one(*numbers: Array) -> Array:
        key = jax.random.key(0, impl="threefry2x32")
        for number in numbers:
            key = jax.random.fold_in(key, number)
        return jax.random.uniform(key)

    return jax.vmap(one)(seed, prompt, sample_index, position)


def _draw(
    logits: Float[Array, "B V"],
    maximum: Float[Array, "B"],
    uniform: Float[Array, "B"],
    params: SamplingParams,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    # Greedy rows are divided by 1. Their draw is not used.
    temperature = jnp.where(params.temperature > 0, params.temperature, 1.0)
    truncates = jnp.any((params.top_p < 1) | (params.top_k > 0) | (params.min_p > 0))
    # The largest logit stays the largest, and is never removed.
    invert = partial(_invert_cumulative, maximum=maximum / temperature, uniform=uniform)
    with jax.named_scope("truncate"):
        # Dividing inside the branches needs no array of its own.
        return jax.lax.cond(
            truncates,
            lambda: invert(_truncate(logits / temperature[:, None], params)),
            lambda: invert(logits / temperature[:, None]),
        )


def _invert_cumulative(
    scaled: Float[Array, "B V"], maximum: Float[Array, "B"], uniform: Float[Array, "B"]
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """The first token whose cumulative probability exceeds `uniform`, and its log-probability.

    It is never one whose logit is -inf.
    """
    B, V = scaled.shape
    blocks = jnp.pad(scaled, ((0, 0), (0, -V % BLOCK)), constant_values=-jnp.inf)
    blocks = blocks.reshape(B, -1, BLOCK)
    block_weights = jnp.exp(blocks - maximum[:, None, None]).sum(-1)
    target = uniform * block_weights.sum(-1)
    block, before, total = _first_above(block_weights, target)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0] - maximum[:, None]
    offset, _, _ = _first_above(jnp.exp(inside), target - before)
    return (block * BLOCK + offset).astype(jnp.int32), _at(inside, offset) - jnp.log(total)


def _first_above(
    weights: Float[Array, "B M"], target: Float[Array, "B"]
) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """The first positive weight at which the cumulative sum passes target, the sum before, all."""
    cumulative = jnp.cumsum(weights, axis=-1)
    candidates = (cumulative > target[:, None]) & (weights > 0)
    # Rounding can put the target at the very end: then take the last positive weight.
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    index = jnp.where(candidates.any(-1), jnp.argmax(candidates, axis=-1), last)
    return index, _at(cumulative, index) - _at(weights, index), weights.sum(-1)


def _truncate(scaled: Float[Array, "B V"], params: SamplingParams) -> Float[Array, "B V"]:
    """Set tokens removed by top-k, top-p or min-p to -inf. Equal logits are treated alike."""
    V = scaled.shape[-1]
    top_k = jnp.where(params.top_k > 0, params.top_k, V)
    kept = scaled >= _threshold(scaled, jnp.ones_like(scaled), top_k.astype(jnp.float32))
    weights = jnp.where(kept, jnp.exp(scaled - scaled.max(-1, keepdims=True)), 0.0)
    # top_p = 1 keeps all tokens: the limit is then above the total.
    limit = jnp.where(params.top_p < 1, params.top_p, 2.0) * weights.sum(-1)
    kept &= scaled >= _threshold(scaled, weights, limit)
    kept &= scaled >= scaled.max(-1, keepdims=True) + jnp.log(params.min_p)[:, None]
    return jnp.where(kept, scaled, -jnp.inf)


def _threshold(
    values: Float[Array, "B V"], weights: Float[Array, "B V"], limit: Float[Array, "B"]
) -> Float[Array, "B 1"]:
    """The smallest t such that the weights of all values > t sum to less than `limit`.

    With weights 1 and limit k this is top-k; with probabilities and limit p it is top-p. It bisects
    the 32 bits of the float, so the result is exact. The largest value always passes.
    """
    ordered = _ordered_bits(values)
    low, high = ordered.min(-1), ordered.max(-1)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        above = jnp.sum(jnp.where(ordered > middle[:, None], weights, 0.0), axis=-1)
        fits = above < limit
        return jnp.where(fits, low, middle + 1), jnp.where(fits, middle, high)

    _, high = jax.lax.fori_loop(0, 32, halve, (low, high))
    bits = jnp.where(high < 0, high ^ 0x7FFFFFFF, high)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)[:, None]


def _ordered_bits(values: Float[Array, "B V"]) -> Int[Array, "B V"]:
    """int32 values that sort like the floats."""
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _at(values: Float[Array, "B V"], index: Int[Array, "B"]) -> Float[Array, "B"]:
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]


def is_stop(token: Int[Array, "B"], stop_ids: Int[Array, "B E"]) -> Bool[Array, "B"]:
    """Whether each token is among its row's stop ids (padded with -1)."""
    return (token[:, None] == stop_ids).any(-1)
