"""The TPU kernels of `ops/flash_attention.py`: one for the forward pass, one for the backward pass.

Both walk a list of pairs of a query block and a key block, and compute all query heads of a key
head for each pair. Scores are transposed, keys by queries: the statistics of queries (maximum, sum,
log-sum-exp) are then rows of lanes, and reductions over keys need no shuffles between lanes. All
arrays have positions last, which is how XLA stores rotated heads, because their halves are then
whole tiles. Exponentials are to the base 2, as the chip computes them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from rmr1_jax.ops.attention import MASKED, matmul_precision

# Bits of a pair: some or all of its scores count; it is the first or last of its query block.
PARTIAL, WHOLE, FIRST, LAST = 1, 2, 4, 8
_LOG2_E = 1.4426950408889634


class Pairs(NamedTuple):
    """The pairs of blocks to compute for each row and stripe of keys, by ascending query block.

    Past the end of its list, a row repeats its last pair without any bit, so nothing is fetched.
    """

    query: Int[Array, "B Z P"]
    key: Int[Array, "B Z P"]
    bits: Int[Array, "B Z P"]
    length: Int[Array, ""]  # the length of the longest list


class Ids(NamedTuple):
    """The segment ids, and the response ids if there are any."""

    segments: Int[Array, "B T"]
    response_ids: Int[Array, "B T"] | None


class Sizes(NamedTuple):
    """The static sizes of the kernels."""

    block: int
    vmem: int  # bytes of on-chip memory that they may use
    interpret: bool = False  # run interpreted, on any platform, for tests


def forward(
    query: Float[Array, "B K G H T"],
    key: Float[Array, "B K H T"],
    value: Float[Array, "B K H T"],
    ids: Ids,
    pairs: Pairs,
    sizes: Sizes,
) -> tuple[Float[Array, "B K G H T"], Float[Array, "B K G 1 T"]]:
    """Attention of the queries, and the base-2 log of each softmax denominator."""
    B, K, G, H, T = query.shape
    of = _Specs(sizes.block, G, H)
    stats = jax.ShapeDtypeStruct((B, K, G, 1, T), jnp.float32)
    return _call(
        partial(_forward_kernel, sizes.block, ids.response_ids is not None),
        "flash_forward",
        pairs,
        sizes,
        (
            (query, of.queries),
            (key, of.keys),
            (value, of.keys),
            *of.ids(ids),
        ),
        outputs=((jax.ShapeDtypeStruct(query.shape, query.dtype), of.queries), (stats, of.stats)),
        scratch=[
            pltpu.VMEM((G, H, sizes.block), jnp.float32),
            pltpu.VMEM((G, 1, sizes.block), jnp.float32),
            pltpu.VMEM((G, 1, sizes.block), jnp.float32),
            pltpu.VMEM((sizes.block, sizes.block), jnp.float32),
        ],
        products=2,
    )


def backward(
    query: Float[Array, "B K G H T"],
    key: Float[Array, "B K H T"],
    value: Float[Array, "B K H T"],
    ids: Ids,
    attended: Float[Array, "B K G H T"],
    log_total: Float[Array, "B K G 1 T"],
    cotangent: Float[Array, "B K G H T"],
    pairs: Pairs,
    sizes: Sizes,
) -> tuple[Float[Array, "B Z K G H T"], Float[Array, "B K H T"], Float[Array, "B K H T"]]:
    """Gradients of queries (per stripe of keys, where it has a pair), keys and values.

    `attended` and `log_total` are the results of `forward`. The gradients of the keys and values of
    a stripe stay on the chip during its pairs, so scores are computed once for all three.
    """
    B, K, G, H, T = query.shape
    Z = pairs.query.shape[1]
    of = _Specs(sizes.block, G, H)
    stripe = pl.BlockSpec((1, 1, H, T // Z), lambda b, k, z, p, *_: (b, k, 0, z))
    by_query = pl.BlockSpec(
        (1, 1, 1, G, H, sizes.block),
        lambda b, k, z, p, i, j, bits: (b, z, k, 0, 0, i[b, z, p]),
    )
    # The parts of several stripes are added later.
    by_query_type = query.dtype if Z == 1 else jnp.float32
    return _call(
        partial(_backward_kernel, sizes.block, ids.response_ids is not None),
        "flash_backward",
        pairs,
        sizes,
        (
            (query, of.queries),
            (key, of.keys),
            (value, of.keys),
            *of.ids(ids),
            (attended, of.queries),
            (log_total, of.stats),
            (cotangent, of.queries),
        ),
        outputs=(
            (jax.ShapeDtypeStruct((B, Z, K, G, H, T), by_query_type), by_query),
            (jax.ShapeDtypeStruct(key.shape, key.dtype), stripe),
            (jax.ShapeDtypeStruct(value.shape, value.dtype), stripe),
        ),
        scratch=[
            pltpu.VMEM((G, H, sizes.block), jnp.float32),
            pltpu.VMEM((G, 1, sizes.block), jnp.float32),
            pltpu.VMEM((T // Z // sizes.block, H, sizes.block), jnp.float32),
            pltpu.VMEM((T // Z // sizes.block, H, sizes.block), jnp.float32),
            pltpu.VMEM((sizes.block, sizes.block), jnp.float32),
        ],
        products=5,
    )


def _forward_kernel(block: int, has_responses: bool, i: Any, j: Any, bits: Any, *refs: Any) -> None:
    at = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    query, key, value, *rest = refs
    *ids, attended, log_total, weighted, maximum, total, bias = rest
    H = query.shape[-2]
    product, to_log2 = _product(query.dtype), H**-0.5 * _LOG2_E

    @_when(bits[at], FIRST)
    def _start() -> None:
        weighted[...] = jnp.zeros_like(weighted)
        maximum[...] = jnp.full_like(maximum, MASKED)
        total[...] = jnp.zeros_like(total)

    def meet(masked: bool) -> None:
        keys = key[0, 0].T

        def head(g: Any, _: None) -> None:
            scores = product("sh,hq->sq", keys, query[0, 0, g])
            if masked:
                scores += bias[...]
            before = maximum[g]
            highest = jnp.maximum(before, scores.max(0, keepdims=True))
            # A query that has seen no key yet counts 1 for each masked key. Its own key, in the
            # last pair of its block, then takes all weight from these.
            weights = jnp.exp2((scores - highest) * to_log2)
            kept = jnp.exp2((before - highest) * to_log2)
            maximum[g] = highest
            total[g] = total[g] * kept + weights.sum(0, keepdims=True)
            values = product("hs,sq->hq", value[0, 0], weights.astype(query.dtype))
            weighted[g] = weighted[g] * kept + values

        jax.lax.fori_loop(0, query.shape[2], head, None)

    _meet(meet, bits[at], bias, block, i[at], j[at], has_responses, *ids)

    @_when(bits[at], LAST)
    def _finish() -> None:
        def head(g: Any, _: None) -> None:
            attended[0, 0, g] = (weighted[g] / total[g]).astype(attended.dtype)
            log_total[0, 0, g] = maximum[g] * to_log2 + jnp.log2(total[g])

        jax.lax.fori_loop(0, query.shape[2], head, None)


def _backward_kernel(
    block: int, has_responses: bool, i: Any, j: Any, bits: Any, *refs: Any
) -> None:
    z, p = pl.program_id(2), pl.program_id(3)
    at = pl.program_id(0), z, p
    query, key, value, *rest = refs
    *ids, attended, log_total, cotangent, by_query, by_key, by_value = rest[:-5]
    query_sum, own, key_sum, value_sum, bias = rest[-5:]
    H = query.shape[-2]
    product, to_log2 = _product(query.dtype), H**-0.5 * _LOG2_E

    @pl.when(p == 0)
    def _start() -> None:
        key_sum[...] = jnp.zeros_like(key_sum)
        value_sum[...] = jnp.zeros_like(value_sum)

    @_when(bits[at], FIRST)
    def _start_queries() -> None:
        query_sum[...] = jnp.zeros_like(query_sum)

        def head(g: Any, _: None) -> None:
            wide = lambda ref: ref[0, 0, g].astype(jnp.float32)  # noqa: E731
            own[g] = jnp.sum(wide(attended) * wide(cotangent), axis=0, keepdims=True)

        jax.lax.fori_loop(0, query.shape[2], head, None)

    def meet(masked: bool) -> None:
        mine = j[at] - z * key_sum.shape[0]
        keys, values = key[0, 0].T, value[0, 0].T

        def head(g: Any, _: None) -> None:
            queries, by_attended = query[0, 0, g], cotangent[0, 0, g]
            scores = product("sh,hq->sq", keys, queries)
            if masked:
                scores += bias[...]
            softmax = jnp.exp2(scores * to_log2 - log_total[0, 0, g])
            by_softmax = product("sh,hq->sq", values, by_attended)
            by_score = (softmax * (by_softmax - own[g])).astype(query.dtype)
            value_sum[mine] += product("hq,sq->hs", by_attended, softmax.astype(query.dtype))
            key_sum[mine] += product("hq,sq->hs", queries, by_score)
            query_sum[g] += product("hs,sq->hq", key[0, 0], by_score)

        jax.lax.fori_loop(0, query.shape[2], head, None)

    _meet(meet, bits[at], bias, block, i[at], j[at], has_responses, *ids)

    @_when(bits[at], LAST)
    def _finish_queries() -> None:
        def head(g: Any, _: None) -> None:
            by_query[0, 0, 0, g] = (query_sum[g] * H**-0.5).astype(by_query.dtype)

        jax.lax.fori_loop(0, query.shape[2], head, None)

    @pl.when(p == pl.num_programs(3) - 1)
    def _finish() -> None:
        for n in range(key_sum.shape[0]):
            keys = pl.ds(n * block, block)
            by_key[0, 0, :, keys] = (key_sum[n] * H**-0.5).astype(by_key.dtype)
            by_value[0, 0, :, keys] = value_sum[n].astype(by_value.dtype)


def _meet(
    meet: Callable[[bool], None],
    bits: Any,
    bias: Any,
    block: int,
    i: Any,
    j: Any,
    has_responses: bool,
    *ids: Any,
) -> None:
    """Run `meet` for a live pair. If some scores do not count, `bias` masks them."""

    @_when(bits, WHOLE)
    def _whole() -> None:
        meet(False)

    @_when(bits, PARTIAL)
    def _partial() -> None:
        shape = (block, block)
        spread = lambda ref: jnp.broadcast_to(ref[0], shape)  # noqa: E731
        of_keys = j * block + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        of_queries = i * block + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        seen = of_keys <= of_queries
        seen &= spread(ids[0]) == spread(ids[1])
        if has_responses:
            key_response = spread(ids[2])
            seen &= (key_response == 0) | (key_response == spread(ids[3]))
        bias[...] = jnp.where(seen, 0.0, MASKED)
        meet(True)


class _Specs:
    """The blocks of the arrays that a pair reads."""

    def __init__(self, block: int, G: int, H: int):
        self.queries = pl.BlockSpec(
            (1, 1, G, H, block), lambda b, k, z, p, i, j, bits: (b, k, 0, 0, i[b, z, p])
        )
        self.stats = pl.BlockSpec(
            (1, 1, G, 1, block), lambda b, k, z, p, i, j, bits: (b, k, 0, 0, i[b, z, p])
        )
        self.keys = pl.BlockSpec(
            (1, 1, H, block), lambda b, k, z, p, i, j, bits: (b, k, 0, j[b, z, p])
        )
        self._columns = pl.BlockSpec(
            (1, block, 1), lambda b, k, z, p, i, j, bits: (b, j[b, z, p], 0)
        )
        self._rows = pl.BlockSpec((1, 1, block), lambda b, k, z, p, i, j, bits: (b, 0, i[b, z, p]))

    def ids(self, ids: Ids) -> list[tuple[Array, pl.BlockSpec]]:
        """The segment ids of keys and queries, and their response ids."""
        given = [array for array in ids if array is not None]
        return [
            part
            for array in given
            for part in ((array[:, :, None], self._columns), (array[:, None], self._rows))
        ]


def _call(
    kernel: Callable[..., None],
    name: str,
    pairs: Pairs,
    sizes: Sizes,
    inputs: tuple[tuple[Array, pl.BlockSpec], ...],
    *,
    outputs: tuple[tuple[jax.ShapeDtypeStruct, pl.BlockSpec], ...],
    scratch: list[Any],
    products: int,
) -> Any:
    query = inputs[0][0]
    B, K, G, H, T = query.shape
    arrays = [array for array, _ in inputs]
    shapes = [shape for shape, _ in outputs]
    moved = sum(x.size * x.dtype.itemsize for x in arrays)
    moved += sum(x.size * x.dtype.itemsize for x in shapes)
    return pl.pallas_call(
        kernel,
        name=name,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, K, pairs.query.shape[1], pairs.length),
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in outputs],
            scratch_shapes=scratch,
        ),
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=sizes.vmem,
        ),
        # The highest cost: each row is one segment.
        cost_estimate=pl.CostEstimate(
            flops=products * B * K * G * T * T * H,
            transcendentals=B * K * G * T * T // 2,
            bytes_accessed=moved,
        ),
        interpret=sizes.interpret,
    )(*pairs[:3], *arrays)


def _when(bits: Any, bit: int) -> Callable[[Callable[[], None]], None]:
    return pl.when(bits & bit != 0)


def _product(dtype: Any) -> Callable[..., Array]:
    return partial(
        jnp.einsum, precision=matmul_precision(dtype), preferred_element_type=jnp.float32
    )
