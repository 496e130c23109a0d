"""Log-probabilities of given tokens from hidden states, without ever holding [tokens, vocabulary].

For 12,288 tokens and 152,064 entries the logits alone are 7 GiB in fp32, and a softmax and its
gradient several times that. Here they exist for one chunk of positions at a time, and the backward
pass computes them again.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rmr1_jax.ops.attention import matmul_precision
from rmr1_jax.ops.constrain import Constrain, unconstrained

# The output head is stored as [V, D] if it is the embedding table (tied), otherwise as [D, V].
HeadLayout = Literal["VD", "DV"]

# Logits of one chunk on one device: 256 MiB in fp32.
CHUNK_LOGITS = 1 << 26


class _Plan(NamedTuple):
    """The static arguments."""

    layout: HeadLayout
    chunk: int
    batch_shards: int
    constrain: Constrain
    entropy: bool


def target_logprobs(
    hidden: Float[Array, "B W D"],
    head: Float[Array, "..."],
    targets: Int[Array, "B W"],
    valid: Bool[Array, "B W"],
    *,
    layout: HeadLayout,
    chunk: int | None = None,
    batch_shards: int = 1,
    constrain: Constrain = unconstrained,
    entropy: bool = False,
) -> tuple[Array, ...]:
    """Log-softmax of `hidden @ head` at `targets` in fp32, and whether no token is likelier.

    With `entropy`, also the entropy of each softmax in nats. All are 0 where `valid` is False.
    Chunks of positions without any valid target are skipped, forward and backward. Products are
    computed in the dtype of `hidden` and summed in fp32, also the gradient of the head over chunks.

    Args:
      hidden: final hidden states.
      head: the output head as it is stored, [V, D] or [D, V].
      targets: token ids.
      valid: where there is a target.
      layout: which of the two `head` is.
      chunk: positions computed at a time; by default as many as `CHUNK_LOGITS` allows.
      batch_shards: the number of devices that B is split over, a divisor of B. Each sums the
        gradient of the head over its own rows; the sums are added once, after all chunks.
      constrain: shards an array by the logical names of its axes.
      entropy: whether to return the entropies as a third result.
    """
    B, W, _ = hidden.shape
    V = head.shape[layout.index("V")]
    chunk = min(W, chunk) if chunk else even_chunk(W, V, B // batch_shards)
    padding = -W % chunk
    if padding:
        hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
        targets, valid = (jnp.pad(x, ((0, 0), (0, padding))) for x in (targets, valid))
    # Without the barrier, the head would be gathered before all micro-batches and held throughout.
    hidden, head = jax.lax.optimization_barrier((hidden, head))
    plan = _Plan(layout, chunk, batch_shards, constrain, entropy)
    results = _target_logprobs(plan, hidden, head, targets, valid)
    return tuple(x[:, :W] for x in results)


def even_chunk(positions: int, vocab_size: int, rows: int) -> int:
    """Positions per chunk, such that `rows` rows have at most about `CHUNK_LOGITS` logits.

    Chunks are equal, since a last one that is mostly empty would cost as much as the others.
    """
    most = max(32, CHUNK_LOGITS // (vocab_size * rows))
    chunks = -(-positions // most)
    return -(-positions // chunks)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _target_logprobs(
    plan: _Plan, hidden: Array, head: Array, targets: Array, valid: Array
) -> tuple[Array, ...]:
    return _forward(plan, hidden, head, targets, valid)[0]


def _forward(
    plan: _Plan, hidden: Array, head: Array, targets: Array, valid: Array
) -> tuple[tuple[Array, ...], Array]:
    """The results of `target_logprobs`, and the log of each softmax denominator."""
    table = _gathered(plan, head, hidden)

    def chunk(at: Array, outputs: tuple[Array, ...]) -> tuple[Array, ...]:
        take, put = _window(plan, at)
        logits = _chunk_logits(plan, take(hidden), table)
        maximum = logits.max(-1)
        below = logits - maximum[..., None]
        total = jnp.exp(below).sum(-1)
        normaliser = maximum + jnp.log(total)
        # A sum, not a gather: if the vocabulary is split, each device reads only its own part.
        chosen = jnp.where(_is_target(logits, take(targets)), logits, 0.0).sum(-1)
        here = take(valid)
        results = [
            normaliser,
            jnp.where(here, chosen - normaliser, 0.0),
            here & (chosen >= maximum),
        ]
        if plan.entropy:
            entropy = jnp.log(total) - (jnp.exp(below) * below).sum(-1) / total
            results.append(jnp.where(here, entropy, 0.0))
        return tuple(put(whole, part) for whole, part in zip(outputs, results, strict=True))

    zeros = jnp.zeros(targets.shape, jnp.float32)
    start: tuple[Array, ...] = (zeros, zeros, jnp.zeros(targets.shape, bool))
    if plan.entropy:
        start = (*start, zeros)
    normaliser, *results = _for_live_chunks(plan, valid, chunk, start)
    return tuple(results), normaliser


def _forward_rule(
    plan: _Plan, hidden: Array, head: Array, targets: Array, valid: Array
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    results, normaliser = _forward(plan, hidden, head, targets, valid)
    # The backward pass needs the entropies: their gradient is - softmax * (log-softmax + entropy).
    return results, (hidden, head, targets, valid, normaliser, *results[2:])


def _backward_rule(
    plan: _Plan, residuals: tuple[Array, ...], cotangents: tuple[Array, ...]
) -> tuple[Array, Array, None, None]:
    hidden, head, targets, valid, normaliser, *entropies = residuals
    table = _gathered(plan, head, hidden)
    cotangent = jnp.where(valid, cotangents[0], 0.0)
    tied = plan.layout == "VD"
    product = partial(
        jnp.einsum,
        precision=matmul_precision(hidden.dtype),
        preferred_element_type=jnp.float32,
    )

    def chunk(at: Array, gradients: tuple[Array, ...]) -> tuple[Array, ...]:
        take, put = _window(plan, at)
        rows = take(hidden)
        log_softmax = _chunk_logits(plan, rows, table) - take(normaliser)[..., None]
        softmax = jnp.exp(log_softmax)
        by_logit = jnp.where(_is_target(softmax, take(targets)), 1.0 - softmax, -softmax)
        by_logit = by_logit * take(cotangent)[..., None]
        if plan.entropy:
            by_entropy = jnp.where(take(valid), take(cotangents[2]), 0.0)[..., None]
            by_logit -= by_entropy * softmax * (log_softmax + take(entropies[0])[..., None])
        by_logit = by_logit.astype(hidden.dtype)
        by_hidden = product("bcv,vd->bcd" if tied else "bcv,dv->bcd", by_logit, table)
        shards = (x.reshape(plan.batch_shards, -1, x.shape[-1]) for x in (by_logit, rows))
        by_head = product("gtv,gtd->gvd" if tied else "gtv,gtd->gdv", *shards)
        return put(gradients[0], by_hidden.astype(hidden.dtype)), gradients[1] + by_head

    sums = jnp.zeros((plan.batch_shards, *head.shape), jnp.float32)
    sums = plan.constrain(sums, ("batch", *_head_axes(plan)))
    by_hidden, sums = _for_live_chunks(plan, valid, chunk, (jnp.zeros_like(hidden), sums))
    # Each part is added where it is stored, so no device holds the whole sum.
    by_head = plan.constrain(sums.sum(0), ("vocab", "embed") if tied else ("embed", "vocab"))
    return by_hidden, by_head.astype(head.dtype), None, None


_target_logprobs.defvjp(_forward_rule, _backward_rule)


def _for_live_chunks(
    plan: _Plan,
    valid: Array,
    chunk: Callable[[Array, tuple[Array, ...]], tuple[Array, ...]],
    state: tuple[Array, ...],
) -> tuple[Array, ...]:
    """Run `chunk` for each chunk of positions with a valid target in some row."""
    live = valid.reshape(valid.shape[0], -1, plan.chunk).any((0, 2))
    (order,) = jnp.nonzero(live, size=live.size, fill_value=0)
    # A loop over the live chunks, not a conditional in each: the sums stay in place.
    return jax.lax.fori_loop(0, live.sum(), lambda i, state: chunk(order[i], state), state)


def _window(
    plan: _Plan, at: Array
) -> tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]:
    """Functions that read and write one chunk of positions in a [B, W, ...] array."""
    start = at * plan.chunk
    return (
        lambda whole: jax.lax.dynamic_slice_in_dim(whole, start, plan.chunk, axis=1),
        lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis=1),
    )


def _gathered(plan: _Plan, head: Array, hidden: Array) -> Array:
    """The head in the compute dtype, gathered once for all chunks, except over the vocabulary."""
    return plan.constrain(head.astype(hidden.dtype), _head_axes(plan))


def _head_axes(plan: _Plan) -> tuple[str | None, ...]:
    return ("vocab", None) if plan.layout == "VD" else (None, "vocab")


def _chunk_logits(plan: _Plan, hidden: Array, table: Array) -> Float[Array, "B c V"]:
    return plan.constrain(_logits(hidden, table, plan.layout), ("batch", None, "vocab"))


def _logits(hidden: Array, table: Array, layout: HeadLayout) -> Float[Array, "B c V"]:
    return jnp.einsum(
        "bcd,vd->bcv" if layout == "VD" else "bcd,dv->bcv",
        hidden,
        table,
        precision=matmul_precision(hidden.dtype),
        preferred_element_type=jnp.float32,
    )


def _is_target(logits: Array, targets: Array) -> Bool[Array, "B c V"]:
    return jax.lax.broadcasted_iota(targets.dtype, logits.shape, 2) == targets[..., None]
