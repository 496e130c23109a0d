"""The TPU kernel of `ops/decode_attention.py`: few queries a row over the row's live blocks.

It walks a list of blocks, several at a time, whose keys and values it brings on the chip itself,
the next ones while it computes: blocks of one step so may be of any rows. The sums of a row stay in
registers from one of its blocks to the next. Exponentials are of base 2, which is what the chip
computes.
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

_LOG2_E = 1.4426950408889634
AT_ONCE = 8  # blocks of one key head a step: independent work that hides the latency of each
BUFFERS = 4  # steps whose keys and values are on the chip or on their way, if there is room
# Bytes of on-chip memory, of which the smallest chip has 16 MiB: for keys and values, and for what
# belongs to queries.
_CACHE_ROOM, _QUERY_ROOM = 4 << 20, 3 << 20


class LiveBlocks(NamedTuple):
    """A list of the blocks of columns in which some row has live ones, row after row."""

    row: Int[Array, "L"]
    block: Int[Array, "L"]
    until: Int[Array, "B"]  # where each row's part of the list ends
    newest: Int[Array, "B"]  # a row's last live column
    length: Int[Array, "B"]  # how many columns up to it are live, going round


class _Sums(NamedTuple):
    """Of a softmax over some of a row's columns, as if the greatest score were 0."""

    maximum: Float[Array, "M 1"]
    total: Float[Array, "M 1"]
    weighted: Float[Array, "M H"]


def attend_live(
    query: Float[Array, "B K M H"],
    key: Float[Array, "B K H C"],
    value: Float[Array, "B K C H"],
    blocks: LiveBlocks,
    width: int,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "B K M H"], Float[Array, "B K M 1"]]:
    """What M queries of each row and key head attend to, and the log of the softmax' denominator.

    Both are in fp32; of a row without live columns they are 0 and `MASKED`.
    """
    B, K, M, H = query.shape
    C = key.shape[-1]
    # How XLA lays out heads that do not fill a row of lanes: transposed here, they are not moved.
    transposed = H % 128 != 0
    if transposed:
        value = value.swapaxes(2, 3)
    at_once = max(1, AT_ONCE // K)
    step = at_once * K * width * 2 * H * key.dtype.itemsize
    buffers = min(max(_CACHE_ROOM // step, 2), BUFFERS)
    of_row = K * _padded(M, 16) * (4 * 128 + _padded(H, 128) * (4 + query.dtype.itemsize))
    rows = min(max(_QUERY_ROOM // of_row, 1), B)
    of_rows = lambda last: pl.BlockSpec((rows, K, M, last), lambda i, *_: (i, 0, 0, 0))  # noqa: E731
    elsewhere = pl.BlockSpec(memory_space=pltpu.HBM)
    if not interpret:
        # Or the compiler brings a small cache on the chip as a whole, dead columns and all.
        key, value = (pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in (key, value))
    cache = B * K * C * H
    return pl.pallas_call(
        partial(_kernel, B, C, at_once, transposed),
        name="decode_attention",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(blocks),
            grid=(pl.cdiv(B, rows),),
            in_specs=[of_rows(H), elsewhere, elsewhere],
            out_specs=[of_rows(H), of_rows(1)],
            scratch_shapes=[
                pltpu.VMEM((buffers, at_once, K, H, width), key.dtype),
                pltpu.VMEM(
                    (buffers, at_once, K, *((H, width) if transposed else (width, H))), value.dtype
                ),
                pltpu.SemaphoreType.DMA((buffers,)),
            ],
        ),
        out_shape=(
            jax.ShapeDtypeStruct((B, K, M, H), jnp.float32),
            jax.ShapeDtypeStruct((B, K, M, 1), jnp.float32),
        ),
        # The list is made of what is there.
        compiler_params=pltpu.CompilerParams(disable_bounds_checks=True),
        # With all columns live: what it costs at most.
        cost_estimate=pl.CostEstimate(
            flops=4 * M * cache,
            transcendentals=B * K * M * C,
            bytes_accessed=2 * cache * key.dtype.itemsize,
        ),
        interpret=interpret,
    )(*blocks, query, key, value)


def _kernel(
    all_rows: int,
    columns: int,
    at_once: int,
    transposed: bool,
    row_of: Any,
    block_of: Any,
    until: Any,
    newest: Any,
    length: Any,
    query: Any,
    key: Any,
    value: Any,
    attended: Any,
    log_total: Any,
    keys: Any,
    values: Any,
    arrived: Any,
) -> None:
    rows, K, M, H = query.shape
    buffers, width = keys.shape[0], keys.shape[-1]
    first_row = pl.program_id(0) * rows
    begin = jnp.where(first_row == 0, 0, until[jnp.maximum(first_row - 1, 0)])
    last = until[jnp.minimum(first_row + rows, all_rows) - 1] - 1
    steps = jax.lax.div(last - begin + at_once, at_once)
    product, to_log2 = _product(query.dtype), H**-0.5 * _LOG2_E
    attended[...] = jnp.zeros_like(attended)
    log_total[...] = jnp.full_like(log_total, MASKED)

    def entry(step: Any, part: int) -> Any:
        """Beyond the end its last one again, all of it masked."""
        return jnp.minimum(begin + step * at_once + part, last)

    def fetch(step: Any) -> None:
        @pl.when(step < steps)
        def _fetch() -> None:
            buffer = jax.lax.rem(step, buffers)
            for part in range(at_once):
                row, block = row_of[entry(step, part)], block_of[entry(step, part)]
                some = pl.ds(pl.multiple_of(block * width, width), width)
                of_row = value.at[row, :, :, some] if transposed else value.at[row, :, some]
                for there, here in (
                    (key.at[row, :, :, some], keys.at[buffer, part]),
                    (of_row, values.at[buffer, part]),
                ):
                    pltpu.make_async_copy(there, here, arrived.at[buffer]).start()

    def wait(step: Any) -> None:
        buffer = jax.lax.rem(step, buffers)
        for all_of in (keys.at[buffer], values.at[buffer]):  # as many bytes as its transfers have
            pltpu.make_async_copy(all_of, all_of, arrived.at[buffer]).wait()

    def meet(step: Any, part: int, head: int) -> _Sums:
        """Of one block alone."""
        buffer, row = jax.lax.rem(step, buffers), row_of[entry(step, part)]
        newest_here = newest[row] - block_of[entry(step, part)] * width
        age = newest_here - jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
        age = jnp.where(age < 0, age + columns, age)
        listed = begin + step * at_once + part <= last
        live = age < jnp.where(listed, length[row], 0)
        scores = product("mh,hw->mw", query[row - first_row, head], keys[buffer, part, head])
        scores = jnp.where(live, scores, MASKED)
        maximum = scores.max(-1, keepdims=True)
        weights = jnp.exp2((scores - maximum) * to_log2)
        by_value = "mw,hw->mh" if transposed else "mw,wh->mh"
        weighted = product(by_value, weights.astype(values.dtype), values[buffer, part, head])
        return _Sums(maximum, weights.sum(-1, keepdims=True), weighted)

    def add(so_far: _Sums, new: _Sums, first: Any) -> _Sums:
        before = jnp.where(first, MASKED, so_far.maximum)
        maximum = jnp.maximum(before, new.maximum)
        kept = jnp.exp2((before - maximum) * to_log2)
        share = jnp.exp2((new.maximum - maximum) * to_log2)
        return _Sums(
            maximum,
            so_far.total * kept + new.total * share,
            so_far.weighted * kept + new.weighted * share,
        )

    def walk(step: Any, sums: tuple[_Sums, ...]) -> tuple[_Sums, ...]:
        fetch(step + buffers - 1)
        wait(step)
        met = [[meet(step, part, head) for head in range(K)] for part in range(at_once)]
        for part, of_heads in enumerate(met):
            row = row_of[entry(step, part)]
            before = begin + step * at_once + part - 1  # may be the last one: then this is it again
            first = (before < begin) | (row != row_of[jnp.clip(before, begin, last)])
            sums = tuple(add(*pair, first) for pair in zip(sums, of_heads, strict=True))
            # What is written before a row's last block is written over.
            for head, (maximum, total, weighted) in enumerate(sums):
                attended[row - first_row, head] = weighted / total
                log_total[row - first_row, head] = maximum * H**-0.5 + jnp.log(total)
        return sums

    for step in range(buffers - 1):
        fetch(step)
    none = _Sums(
        jnp.full((M, 1), MASKED, jnp.float32),
        jnp.zeros((M, 1), jnp.float32),
        jnp.zeros((M, H), jnp.float32),
    )
    jax.lax.fori_loop(0, steps, walk, (none,) * K)


def _padded(size: int, tile: int) -> int:
    return size + -size % tile


def _product(dtype: Any) -> Callable[..., Array]:
    return partial(
        jnp.einsum, precision=matmul_precision(dtype), preferred_element_type=jnp.float32
    )
