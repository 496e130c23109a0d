"""Attention of a decode step to caches whose rows hold different numbers of live tokens.

A row of a cache is a ring of positions, of which those up to the newest token are live. `masked`
reads all positions of all rows and masks them. `LiveAttention` reads only the blocks with live
positions, with the TPU kernel below. Both give the same result.

The kernel walks a list of blocks, several at a time, which may belong to any rows. It copies keys
and values onto the chip itself, the next ones while it computes. The sums of a row stay in
registers from one of its blocks to the next. Exponentials are to the base 2, as the chip computes
them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rmr1_jax.ops.attention import MASKED, PartialAttention, matmul_precision, partial_attention

_LOG2_E = 1.4426950408889634
AT_ONCE = 8  # blocks of one key head per step: independent work that hides latency
BUFFERS = 4  # steps whose keys and values are on the chip or being copied, if there is room
# Bytes of on-chip memory for keys and values, and for queries; the smallest chip has 16 MiB.
_CACHE_ROOM, _QUERY_ROOM = 4 << 20, 3 << 20
# Up to this cache length, half-empty blocks of 256 would be much of what is read.
SHORT = 2048


class Live(NamedTuple):
    """The live positions of each row: `length` of them up to `newest`, around the ring."""

    newest: Int[Array, "B"]
    length: Int[Array, "B"]


# (query [B T N H], key [B K H C], value [B K C H]) -> attention to the live positions.
Attend = Callable[[Array, Array, Array], PartialAttention]
# (live, C) -> `Attend` for caches of length C. It is made once per step, for all layers.
DecodeAttention = Callable[[Live, int], Attend]


class LiveBlocks(NamedTuple):
    """A list of the blocks of positions that hold live ones, row after row."""

    row: Int[Array, "L"]
    block: Int[Array, "L"]
    until: Int[Array, "B"]  # where the part of each row ends in the list
    newest: Int[Array, "B"]  # the last live position of each row
    length: Int[Array, "B"]  # the number of live positions up to it, around the ring


def live_mask(live: Live, cache_length: int) -> Bool[Array, "B C"]:
    """Which positions of each row are live."""
    age = (live.newest[:, None] - jnp.arange(cache_length)) % cache_length
    return age < live.length[:, None]


def masked(live: Live, cache_length: int) -> Attend:
    """Attention in plain XLA, for any platform. It reads every position."""
    mask = live_mask(live, cache_length)[:, None]
    return lambda query, key, value: partial_attention(query, key, value, mask)


@dataclass(frozen=True)
class LiveAttention:
    """A `DecodeAttention` for TPU.

    Args:
      heads: the mesh axis that splits the heads, if any; the caller maps the other axes.
      interpret: run the kernel interpreted, on any platform, for tests.
    """

    heads: str | None = None
    interpret: bool = False

    def __call__(self, live: Live, cache_length: int) -> Attend:
        width = block_width(cache_length)
        blocks = live_blocks(live, cache_length, width)
        return lambda query, key, value: self._attend(query, key, value, blocks, width)

    def _attend(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B K H C"],
        value: Float[Array, "B K C H"],
        blocks: LiveBlocks,
        width: int,
    ) -> PartialAttention:
        of_device = partial(_attend_here, width, self.interpret)
        if self.heads is not None:
            # The compiler cannot split a Mosaic kernel, so each device calls it for its heads.
            queries, cache = PartitionSpec(None, None, self.heads), PartitionSpec(None, self.heads)
            of_device = jax.shard_map(
                of_device,
                in_specs=(queries, cache, cache, PartitionSpec()),
                out_specs=queries,
                axis_names={self.heads},
                check_vma=False,  # kernels do not declare over which axes their results vary
            )
        attended, log_total = of_device(query, key, value, blocks)
        # The result is divided already; `merge` also needs the log of the denominator.
        return PartialAttention(attended, log_total, jnp.ones_like(log_total))


def _attend_here(
    width: int,
    interpret: bool,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K H C"],
    value: Float[Array, "B K C H"],
    blocks: LiveBlocks,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    B, T, N, H = query.shape
    K = key.shape[1]
    by_head = query.reshape(B, T, K, N // K, H).swapaxes(1, 2).reshape(B, K, -1, H)
    attended, log_total = attend_live(by_head, key, value, blocks, width, interpret=interpret)
    to_heads = lambda x: x.reshape(B, K, T, -1, *x.shape[3:]).swapaxes(1, 2)  # noqa: E731
    return (
        to_heads(attended).reshape(B, T, N, H),
        to_heads(log_total[..., 0]).reshape(B, T, N),
    )


def block_width(cache_length: int) -> int:
    """Positions per block (docs/decisions/029)."""
    if cache_length % 128:
        raise ValueError(f"a cache length must be a multiple of 128, not {cache_length}")
    return 128 if cache_length % 256 or cache_length <= SHORT else 256


def live_blocks(live: Live, cache_length: int, width: int) -> LiveBlocks:
    """The blocks of `width` positions with live ones, of each row from the newest back."""
    of_row = cache_length // width
    in_newest = live.newest % width + 1
    older = -(-jnp.maximum(live.length - in_newest, 0) // width)
    # A row that fills the ring reaches its newest block again, which was already read whole.
    count = jnp.where(live.length > 0, jnp.minimum(older + 1, of_row), 0)
    until = jnp.cumsum(count)
    at = jnp.arange(live.length.shape[0] * of_row)
    row = jnp.searchsorted(until, at, side="right", method="compare_all")
    row = jnp.minimum(row, live.length.shape[0] - 1)
    nth = at - (until - count)[row]
    block = (live.newest[row] // width - nth) % of_row
    narrow = lambda x: x.astype(jnp.int32)  # noqa: E731
    return LiveBlocks(
        narrow(row), narrow(block), narrow(until), narrow(live.newest), narrow(live.length)
    )


class _Sums(NamedTuple):
    """A softmax over some positions of a row, relative to the largest score."""

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
    """Attention of M queries per row and key head, and the log of the softmax denominator.

    Both are fp32. For a row without live positions they are 0 and `MASKED`.
    """
    B, K, M, H = query.shape
    C = key.shape[-1]
    # XLA stores heads that do not fill the lanes transposed; using them like that saves a copy.
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
        # Otherwise the compiler copies a whole small cache onto the chip, dead positions included.
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
        # The list holds only valid indices.
        compiler_params=pltpu.CompilerParams(disable_bounds_checks=True),
        # The highest cost: all positions are live.
        cost_estimate=pl.CostEstimate(
            flops=4 * M * cache,
            transcendentals=B * K * M * C,
            bytes_accessed=2 * cache * key.dtype.itemsize,
        ),
        interpret=interpret,
    )(*blocks, query, key, value)


def _kernel(
    all_rows: int,
    cache_length: int,
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
        """The index of an entry. Past the end it is the last one again, fully masked."""
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
        for all_of in (
            keys.at[buffer],
            values.at[buffer],
        ):  # the same number of bytes as the transfers
            pltpu.make_async_copy(all_of, all_of, arrived.at[buffer]).wait()

    def meet(step: Any, part: int, head: int) -> _Sums:
        """The softmax over one block."""
        buffer, row = jax.lax.rem(step, buffers), row_of[entry(step, part)]
        newest_here = newest[row] - block_of[entry(step, part)] * width
        age = newest_here - jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
        age = jnp.where(age < 0, age + cache_length, age)
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
            before = (
                begin + step * at_once + part - 1
            )  # may be past the end, where entries repeat the last one
            first = (before < begin) | (row != row_of[jnp.clip(before, begin, last)])
            sums = tuple(add(*pair, first) for pair in zip(sums, of_heads, strict=True))
            # Results of a row before its last block are overwritten.
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
