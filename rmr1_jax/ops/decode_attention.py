"""Attention of a decode step to caches in which each row has live columns of its own number.

`masked` reads all columns of all rows, and masks; `LiveAttention` reads, by a TPU kernel
(`ops/decode_kernel.py`), the blocks of columns in which some are live. Both give the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rmr1_jax.ops.attention import PartialAttention, partial_attention
from rmr1_jax.ops.decode_kernel import LiveBlocks, attend_live


class Live(NamedTuple):
    """Of each row the `length` columns up to `newest`; before column 0 comes the last."""

    newest: Int[Array, "B"]
    length: Int[Array, "B"]


# Columns of a cache whose rows are so short that half-empty blocks would be much of what is read.
SHORT = 2048
# (query [B T N H], key [B K H C], value [B K C H]) -> their attention, for columns that are live.
Attend = Callable[[Array, Array, Array], PartialAttention]
# (live, C) -> what attends to caches of C columns: of all layers, so made once a step.
DecodeAttention = Callable[[Live, int], Attend]


def live_columns(live: Live, columns: int) -> Bool[Array, "B C"]:
    """Which columns of each row are live."""
    age = (live.newest[:, None] - jnp.arange(columns)) % columns
    return age < live.length[:, None]


def masked(live: Live, columns: int) -> Attend:
    """By plain XLA, on any platform: every column is read."""
    mask = live_columns(live, columns)[:, None]
    return lambda query, key, value: partial_attention(query, key, value, mask)


@dataclass(frozen=True)
class LiveAttention:
    """A `DecodeAttention` for TPU.

    Args:
      heads: the mesh axis that splits heads, if one does; every other one is the caller's.
      interpret: run the kernel's meaning on any platform, for tests.
    """

    heads: str | None = None
    interpret: bool = False

    def __call__(self, live: Live, columns: int) -> Attend:
        width = block_width(columns)
        blocks = live_blocks(live, columns, width)
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
            # Mosaic kernels cannot be split by the compiler: each device calls it for its heads.
            queries, cache = PartitionSpec(None, None, self.heads), PartitionSpec(None, self.heads)
            of_device = jax.shard_map(
                of_device,
                in_specs=(queries, cache, cache, PartitionSpec()),
                out_specs=queries,
                axis_names={self.heads},
                check_vma=False,  # kernels do not say over which axes their results vary
            )
        attended, log_total = of_device(query, key, value, blocks)
        # Divided already: the log of the denominator is all that a merge needs beside.
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


def block_width(columns: int) -> int:
    """Columns a block; docs/decisions/029 says why so many."""
    if columns % 128:
        raise ValueError(f"a cache has a multiple of 128 columns, not {columns}")
    return 128 if columns % 256 or columns <= SHORT else 256


def live_blocks(live: Live, columns: int, width: int) -> LiveBlocks:
    """The blocks of `width` columns in which each row has a live one, from the newest back."""
    of_row = columns // width
    in_newest = live.newest % width + 1
    older = -(-jnp.maximum(live.length - in_newest, 0) // width)
    # A row that goes all the way round meets its newest block again, which is fetched whole.
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
