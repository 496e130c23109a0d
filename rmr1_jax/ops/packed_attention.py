"""Causal attention within the segments of packed rows, without ever holding [T, T].

Rows are cut into blocks. Each query block visits the key blocks up to its own and keeps a running
softmax (Milakov & Gimelshein, 2018, arXiv 1805.02867). The backward pass recomputes the scores from
the saved log-sum-exp (FlashAttention-2, arXiv 2307.08691). Pairs of blocks are skipped if the keys
come later or if no row has a segment in both, so the cost depends on the segments and not on the
length of the row.

A segment may be a prompt followed by several responses, which all see the prompt but not each
other. Pairs of blocks of different responses are skipped too.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from rmr1_jax.ops.attention import MASKED, matmul_precision

# On a CPU, the scores of a pair of blocks fit in the cache. Accelerators need larger products.
CPU_BLOCK, ACCELERATOR_BLOCK = 128, 512
# The name by which a checkpoint policy keeps the residuals of the forward pass.
KEPT = "packed_attention"

# The signature of `packed_attention`: query, key, value, segment ids, response ids.
PackedAttention = Callable[
    [
        Float[Array, "B T N H"],
        Float[Array, "B T K H"],
        Float[Array, "B T K H"],
        Int[Array, "B T"] | None,
        Int[Array, "B T"] | None,
    ],
    Float[Array, "B T N H"],
]


class _Inputs(NamedTuple):
    """The inputs with heads before positions, and all query heads of a key head together."""

    rows: Float[Array, "B K TG H"]  # the G queries of a position are adjacent
    key: Float[Array, "B K T H"]
    value: Float[Array, "B K T H"]
    segment_ids: Int[Array, "B T"] | None
    response_ids: Int[Array, "B T"] | None


def packed_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None = None,
    response_ids: Int[Array, "B T"] | None = None,
    *,
    block: int | None = None,
) -> Float[Array, "B T N H"]:
    """Each token attends to itself and to the earlier tokens of its row with the same segment id.

    With `response_ids`, a token sees only the prompt (0) and its own response. Softmax and sums are
    fp32; the result has the dtype of `query`. N is a multiple of K. Padding is a segment like any
    other, so its results are finite.

    Args:
      query: with rotary positions applied, like `key`.
      key: one per token.
      value: one per token.
      segment_ids: ascending from 1, then 0 for padding; other ids are correct but slower. All one
        segment when absent.
      response_ids: 0 for the prompt of a segment, then its responses, ascending from 1 through the
        row; other ids are correct but slower. Each token of padding then sees only itself.
      block: positions per block, by default what suits the platform.
    """
    B, T, N, H = query.shape
    K = key.shape[2]
    padding = -T % min(T, block or CPU_BLOCK)
    if padding:
        query, key, value = (
            jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (query, key, value)
        )
        segment_ids, response_ids = (
            None if ids is None else jnp.pad(ids, ((0, 0), (0, padding)))
            for ids in (segment_ids, response_ids)
        )
    if response_ids is not None:
        segment_ids = padding_apart(segment_ids, response_ids)
    by_group = query.reshape(B, -1, K, N // K, H).transpose(0, 2, 1, 3, 4)
    inputs = _Inputs(
        by_group.reshape(B, K, -1, H),
        key.swapaxes(1, 2),
        value.swapaxes(1, 2),
        segment_ids,
        response_ids,
    )
    attended = _attention(block, inputs).reshape(by_group.shape).transpose(0, 2, 1, 3, 4)
    return attended.reshape(B, -1, N, H)[:, :T]


def live_pairs(
    segment_ids: Int[Array, "B T"], response_ids: Int[Array, "B T"] | None, block: int
) -> tuple[Int[Array, " pairs"], Int[Array, " pairs"], Bool[Array, " pairs"]]:
    """Query blocks i, key blocks j <= i, and whether some query of i may see a key of j.

    It compares the ranges of ids in the blocks, which is exact for ascending ids. T is a multiple
    of `block`.
    """
    blocks = segment_ids.shape[1] // block
    i, j = jnp.tril_indices(blocks)
    in_blocks = lambda x: x.reshape(len(x), blocks, block)  # noqa: E731
    # Padding comes last. As the highest id it overlaps with nothing before it.
    highest = jnp.iinfo(segment_ids.dtype).max
    ids = in_blocks(jnp.where(segment_ids == 0, highest, segment_ids))
    low, high = ids.min(-1), ids.max(-1)
    live = (low[:, i] <= high[:, j]) & (low[:, j] <= high[:, i])
    if response_ids is not None:
        of_blocks = in_blocks(response_ids)
        prompt, high = (of_blocks == 0).any(-1), of_blocks.max(-1)
        # In a block without responses, low is above high, so it overlaps with none.
        low = jnp.where(of_blocks == 0, jnp.iinfo(response_ids.dtype).max, of_blocks).min(-1)
        live &= prompt[:, j] | ((low[:, i] <= high[:, j]) & (low[:, j] <= high[:, i]))
    return i, j, live.any(0)


def padding_apart(segment_ids: Array | None, response_ids: Array) -> Array:
    """Segment ids in which each token of padding has an id of its own, above all others.

    Otherwise the blocks of long tails of padding would all attend to each other.
    """
    if segment_ids is None:
        return jnp.ones_like(response_ids)
    T = segment_ids.shape[1]
    own = jnp.iinfo(segment_ids.dtype).max - T + jnp.arange(T, dtype=segment_ids.dtype)
    return jnp.where(segment_ids == 0, own, segment_ids)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(block: int | None, inputs: _Inputs) -> Float[Array, "B K TG H"]:
    return _forward(block, inputs)[0]


def _forward(block: int | None, inputs: _Inputs) -> tuple[Array, Array]:
    return _on_platform(_forward_blocks, block, inputs)


def _forward_rule(block: int | None, inputs: _Inputs) -> tuple[Array, tuple[_Inputs, Array, Array]]:
    attended, log_total = checkpoint_name(_forward(block, inputs), KEPT)
    return attended, (inputs, attended, log_total)


def _backward_rule(
    block: int | None, residuals: tuple[_Inputs, Array, Array], cotangent: Array
) -> tuple[_Inputs]:
    return (_on_platform(_backward_blocks, block, *residuals, cotangent),)


_attention.defvjp(_forward_rule, _backward_rule)


def _on_platform[R](
    function: Callable[..., R], block: int | None, inputs: _Inputs, *others: Array
) -> R:
    """Call `function` with the block size for the platform that is compiled for."""
    T = inputs.key.shape[2]
    if block is not None or T <= CPU_BLOCK:
        return function(min(T, block or T), inputs, *others)
    return jax.lax.platform_dependent(
        inputs,
        *others,
        cpu=partial(function, CPU_BLOCK),
        default=partial(function, accelerator_block(T)),
    )


def accelerator_block(positions: int) -> int:
    """The block size on accelerators, for rows padded to a multiple of `CPU_BLOCK`."""
    fitting = range(CPU_BLOCK, ACCELERATOR_BLOCK + 1, CPU_BLOCK)
    return max(size for size in fitting if positions % size == 0)


def _forward_blocks(block: int, inputs: _Inputs) -> tuple[Array, Array]:
    """Attention of the queries, and the log of each softmax denominator."""
    rows, key, value, *_ = inputs
    product = _product(rows.dtype)
    of_rows = block * (rows.shape[2] // key.shape[2])

    def pair(i: Array, j: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        maximum, total, weighted = (_take(x, i, of_rows) for x in state)
        scores = _scores(i, j, inputs, block)
        highest = jnp.maximum(maximum, scores.max(-1))
        weights = jnp.exp(scores - highest[..., None])
        before = jnp.exp(maximum - highest)
        values = product("bkrs,bksh->bkrh", weights.astype(value.dtype), _take(value, j, block))
        total = total * before + weights.sum(-1)
        weighted = weighted * before[..., None] + values
        parts = (highest, total, weighted)
        return tuple(_put(x, part, i) for x, part in zip(state, parts, strict=True))

    zeros = jnp.zeros(rows.shape, jnp.float32)
    start = (jnp.full_like(zeros[..., 0], MASKED), zeros[..., 0], zeros)
    maximum, total, weighted = _for_live_pairs(pair, start, inputs, block)
    return (weighted / total[..., None]).astype(rows.dtype), maximum + jnp.log(total)


def _backward_blocks(
    block: int, inputs: _Inputs, attended: Array, log_total: Array, cotangent: Array
) -> _Inputs:
    """The gradients of the attention of `_forward_blocks`."""
    rows, key, value, *_ = inputs
    product = _product(rows.dtype)
    of_rows = block * (rows.shape[2] // key.shape[2])
    own = product("bkrh,bkrh->bkr", attended, cotangent)

    def pair(i: Array, j: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        by_rows, by_key, by_value = state
        queries, by_attended = _take(rows, i, of_rows), _take(cotangent, i, of_rows)
        keys, values = _take(key, j, block), _take(value, j, block)
        scores = _scores(i, j, inputs, block)
        softmax = jnp.exp(scores - _take(log_total, i, of_rows)[..., None])
        by_softmax = product("bkrh,bksh->bkrs", by_attended, values)
        by_score = softmax * (by_softmax - _take(own, i, of_rows)[..., None])
        by_score = (by_score * rows.shape[-1] ** -0.5).astype(rows.dtype)
        weights = softmax.astype(rows.dtype)
        return (
            _add(by_rows, product("bkrs,bksh->bkrh", by_score, keys), i),
            _add(by_key, product("bkrs,bkrh->bksh", by_score, queries), j),
            _add(by_value, product("bkrs,bkrh->bksh", weights, by_attended), j),
        )

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (rows, key, value))
    sums = _for_live_pairs(pair, start, inputs, block)
    by_rows, by_key, by_value = (x.astype(rows.dtype) for x in sums)
    return _Inputs(by_rows, by_key, by_value, None, None)


def _for_live_pairs(
    pair: Callable[[Array, Array, tuple[Array, ...]], tuple[Array, ...]],
    state: tuple[Array, ...],
    inputs: _Inputs,
    block: int,
) -> tuple[Array, ...]:
    """Run `pair` for each query block i and key block j <= i in which some query sees a key.

    For each i, the last is j = i, in which every query sees at least itself. Masked scores before
    it, which counted as 1 while the maximum was `MASKED`, then lose all their weight.
    """
    blocks = inputs.key.shape[2] // block
    if blocks == 1:
        return pair(jnp.int32(0), jnp.int32(0), state)
    if inputs.segment_ids is None:
        i, j = jnp.tril_indices(blocks)
        count: int | Array = i.size
    else:
        i, j, live = live_pairs(inputs.segment_ids, inputs.response_ids, block)
        (order,) = jnp.nonzero(live, size=i.size, fill_value=0)
        i, j, count = i[order], j[order], live.sum()
    return jax.lax.fori_loop(0, count, lambda at, state: pair(i[at], j[at], state), state)


def _scores(i: Array, j: Array, inputs: _Inputs, block: int) -> Float[Array, "B K R S"]:
    """Scores of query block i for key block j, masked where a query may not see a key."""
    rows, key, _, segment_ids, response_ids = inputs
    groups = rows.shape[2] // key.shape[2]
    queries, keys = _take(rows, i, block * groups), _take(key, j, block)
    scores = _product(rows.dtype)("bkrh,bksh->bkrs", queries, keys) * rows.shape[-1] ** -0.5
    within = jnp.arange(block)
    mask = (i * block + within)[None, :, None] >= (j * block + within)[None, None, :]
    if segment_ids is not None:
        of_queries, of_keys = _ids(segment_ids, i, j, block)
        mask = mask & (of_queries == of_keys)
    if response_ids is not None:
        of_queries, of_keys = _ids(response_ids, i, j, block)
        mask = mask & ((of_keys == 0) | (of_queries == of_keys))
    return jnp.where(jnp.repeat(mask, groups, axis=1)[:, None], scores, MASKED)


def _ids(
    ids: Array, i: Array, j: Array, block: int
) -> tuple[Int[Array, "B Q 1"], Int[Array, "B 1 S"]]:
    """The ids of query block i and of key block j, shaped to be compared."""
    of_queries, of_keys = (
        jax.lax.dynamic_slice_in_dim(ids, at * block, block, axis=1) for at in (i, j)
    )
    return of_queries[:, :, None], of_keys[:, None, :]


def _product(dtype: DTypeLike) -> Callable[..., Array]:
    return partial(
        jnp.einsum, precision=matmul_precision(dtype), preferred_element_type=jnp.float32
    )


def _take(whole: Array, at: Array, size: int) -> Array:
    """Block `at` of `size` along the axis of positions."""
    return jax.lax.dynamic_slice_in_dim(whole, at * size, size, axis=2)


def _put(whole: Array, part: Array, at: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, at * part.shape[2], axis=2)


def _add(whole: Array, part: Array, at: Array) -> Array:
    return _put(whole, _take(whole, at, part.shape[2]) + part, at)
