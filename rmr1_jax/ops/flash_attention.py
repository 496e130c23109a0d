"""`packed_attention` for TPU, by two Pallas kernels (`ops/flash_kernels.py`).

The pairs of blocks to compute are found per row, from its segment and response ids, before a kernel
runs. The kernels walk only that list. On a mesh each device computes its own rows and heads.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rmr1_jax.ops import flash_kernels
from rmr1_jax.ops.flash_kernels import FIRST, LAST, PARTIAL, WHOLE, Ids, Pairs, Sizes
from rmr1_jax.ops.packed_attention import KEPT, live_pairs, padding_apart

LANES = 128
MIB = 1 << 20
# On-chip memory of a core in MiB, by device kind. Unknown kinds get the smallest.
_VMEM = {"TPU v4": 16, "TPU v5 lite": 128, "TPU v5": 64, "TPU v6 lite": 128, "TPU7x": 64}
_SMALL = 16 * MIB


class Split(NamedTuple):
    """How rows and heads are split over a mesh."""

    mesh: Mesh
    rows: tuple[str, ...]
    heads: tuple[str, ...]


class _Plan(NamedTuple):
    sizes: Sizes
    split: Split | None


class _Inputs(NamedTuple):
    query: Float[Array, "B K G H T"]
    key: Float[Array, "B K H T"]
    value: Float[Array, "B K H T"]
    ids: Ids


def flash_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None = None,
    response_ids: Int[Array, "B T"] | None = None,
    *,
    split: Split | None = None,
    vmem: int = _SMALL,
    block: int | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """`packed_attention` on TPU, with the same arguments and these options.

    Args:
      query: with rotary positions applied, like `key`.
      key: one per token.
      value: one per token.
      segment_ids: ascending from 1, then 0 for padding.
      response_ids: 0 for the prompt of a segment, then its responses, ascending from 1.
      split: how the arrays are split over a mesh; on one device when absent.
      vmem: on-chip memory of a core, in bytes.
      block: positions per block, a multiple of 128; by default chosen by memory. At most the length
        of a row.
      interpret: run the kernels interpreted, on any platform, for tests.
    """
    B, T, N, H = query.shape
    K = key.shape[2]
    block = min(block or (256 if vmem <= _SMALL else 512), T + -T % LANES)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, -T % block)) + ((0, 0),) * (x.ndim - 2))  # noqa: E731
    if segment_ids is None:
        segment_ids = jnp.ones((B, T), jnp.int32)
    segment_ids = pad(segment_ids)
    if response_ids is not None:
        response_ids = pad(response_ids)
        segment_ids = padding_apart(segment_ids, response_ids)
    inputs = _Inputs(
        pad(query).reshape(B, -1, K, N // K, H).transpose(0, 2, 3, 4, 1),
        pad(key).transpose(0, 2, 3, 1),
        pad(value).transpose(0, 2, 3, 1),
        Ids(segment_ids, response_ids),
    )
    # The compiler needs some of the memory itself.
    plan = _Plan(Sizes(block, vmem * 7 // 8, interpret), split)
    attended = _attention(plan, inputs).transpose(0, 4, 1, 2, 3)
    return attended.reshape(B, -1, N, H)[:, :T]


def on_chip_memory(device_kind: str) -> int:
    """The on-chip memory of a core in bytes. Kernels may use most of it."""
    return _VMEM.get(device_kind, _SMALL // MIB) * MIB


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: _Plan, inputs: _Inputs) -> Float[Array, "B K G H T"]:
    return _split(plan, _forward, inputs)[0]


def _forward_rule(plan: _Plan, inputs: _Inputs) -> tuple[Array, tuple[_Inputs, Array, Array]]:
    attended, log_total = checkpoint_name(_split(plan, _forward, inputs), KEPT)
    return attended, (inputs, attended, log_total)


def _backward_rule(
    plan: _Plan, residuals: tuple[_Inputs, Array, Array], cotangent: Array
) -> tuple[_Inputs]:
    by_query, by_key, by_value = _split(plan, _backward, *residuals, cotangent)
    return (_Inputs(by_query, by_key, by_value, Ids(None, None)),)  # type: ignore[arg-type]


_attention.defvjp(_forward_rule, _backward_rule)


def _split(plan: _Plan, function: Callable[..., Any], *arrays: Any) -> Any:
    """`function(sizes, *arrays)`, computed by each device for its rows and heads."""
    if plan.split is None:
        return function(plan.sizes, *arrays)
    mesh, rows, heads = plan.split
    # Ids have no heads. Everything else begins with rows and heads.
    spec = lambda x: PartitionSpec(rows or None, *((heads or None,) if x.ndim > 2 else ()))  # noqa: E731
    results = jax.eval_shape(partial(function, plan.sizes), *arrays)
    return jax.shard_map(
        partial(function, plan.sizes),
        mesh=mesh,
        in_specs=jax.tree.map(spec, arrays),
        out_specs=jax.tree.map(spec, results),
        check_vma=False,  # kernels do not declare over which axes their results vary
    )(*arrays)


def _forward(sizes: Sizes, inputs: _Inputs) -> tuple[Array, Array]:
    pairs = block_pairs(inputs.ids, sizes.block, 1)
    return tuple(flash_kernels.forward(*inputs, pairs, sizes))  # type: ignore[return-value]


def _backward(
    sizes: Sizes, inputs: _Inputs, attended: Array, log_total: Array, cotangent: Array
) -> tuple[Array, Array, Array]:
    _, _, G, H, T = inputs.query.shape
    blocks = T // sizes.block
    stripes = _stripes(blocks, G, H, inputs.key.dtype.itemsize, sizes)
    pairs = block_pairs(inputs.ids, sizes.block, stripes)
    by_query, by_key, by_value = flash_kernels.backward(
        *inputs, attended, log_total, cotangent, pairs, sizes
    )
    if stripes == 1:
        return by_query[:, 0], by_key, by_value
    # A stripe wrote only the query blocks that have a pair in it.
    met = jax.vmap(jax.vmap(lambda i: jnp.zeros(blocks, bool).at[i].set(True)))(pairs.query)
    met = jnp.repeat(met, sizes.block, axis=-1)[:, :, None, None, None, :]
    by_query = jnp.where(met, by_query, 0.0).sum(1).astype(inputs.query.dtype)
    return by_query, by_key, by_value


def _stripes(blocks: int, G: int, H: int, itemsize: int, sizes: Sizes) -> int:
    """The fewest stripes of keys, in whole blocks, whose gradients fit on the chip."""
    H += -H % LANES
    # Two fp32 sums, and their results twice, since one copy is being written out.
    of_block = sizes.block * H * 2 * (4 + 2 * itemsize)
    # Queries, results, cotangents and fp32 gradients, twice; their sum; ids of keys, each of which
    # fills a row of lanes; and scores being computed.
    lanes = G * H * (6 * itemsize + 3 * 4) + 4 * LANES * 4 + 6 * sizes.block * 4
    others = sizes.block * lanes
    at_once = max(1, (sizes.vmem - others) // of_block)
    return next(n for n in range(1, blocks + 1) if blocks % n == 0 and blocks // n <= at_once)


def block_pairs(ids: Ids, block: int, stripes: int) -> Pairs:
    """The pairs of blocks of each row in which some query sees a key, by stripes of keys."""
    segments, response_ids = ids

    def live_of_row(segments: Array, response_ids: Array | None) -> Array:
        response_ids = None if response_ids is None else response_ids[None]
        return live_pairs(segments[None], response_ids, block)[2]

    live = jax.vmap(live_of_row)(segments, response_ids)
    i, j = jnp.tril_indices(segments.shape[1] // block)
    per_stripe = segments.shape[1] // block // stripes
    bits = jnp.where(_seen_whole(ids, block) & (i != j), WHOLE, PARTIAL)

    def listed(live: Bool[Array, " P"], bits: Int[Array, " P"], z: Array) -> tuple[Array, ...]:
        live = live & (j // per_stripe == z)
        count = live.sum()
        at = jnp.arange(live.size)
        order = jnp.argsort(~live, stable=True)[jnp.minimum(at, count - 1)]
        queries = i[order]
        first = (at == 0) | (queries != jnp.roll(queries, 1))
        last = (at == count - 1) | (queries != jnp.roll(queries, -1))
        bits = bits[order] + jnp.where(first, FIRST, 0) + jnp.where(last, LAST, 0)
        return queries, j[order], jnp.where(at < count, bits, 0), count

    of_row = jax.vmap(listed, (None, None, 0))
    queries, keys, bits, count = jax.vmap(of_row, (0, 0, None))(live, bits, jnp.arange(stripes))
    return Pairs(queries, keys, bits, count.max())


def _seen_whole(ids: Ids, block: int) -> Bool[Array, "B P"]:
    """Whether each query of block i sees every key of block j, order aside. False if unsure."""
    i, j = jnp.tril_indices(ids.segments.shape[1] // block)

    def ends(x: Array) -> tuple[Array, Array]:
        x = x.reshape(len(x), -1, block)
        return x.min(-1), x.max(-1)

    def same(low: Array, high: Array) -> Array:
        return (low[:, i] == high[:, i]) & (low[:, j] == high[:, j]) & (low[:, i] == low[:, j])

    whole = same(*ends(ids.segments))
    if ids.response_ids is not None:
        low, high = ends(ids.response_ids)
        whole &= same(low, high) | ((low[:, j] == 0) & (high[:, j] == 0))
    return whole
