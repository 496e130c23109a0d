"""Keys and values of decoding, one pair of arrays a layer, updated in place.

Prompts and responses lie apart. A prompt is stored once for the whole group that answers it (a
*lane*). Responses lie in a ring of columns that all slots write at one shared cursor: a slot that
is refilled starts wherever the cursor stands, its first token is simply its oldest column. So every
step writes one uniform column (a dynamic-update-slice in place, no scatter), and any slot can be
refilled at any time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from rmr1_jax.models.config import ModelConfig


class LayerCache(NamedTuple):
    """[B, K, C, H]: B lanes or slots, C columns."""

    key: Float[Array, "B K C H"]
    value: Float[Array, "B K C H"]


KVCache = tuple[LayerCache, ...]


def empty_cache(config: ModelConfig, rows: int, columns: int, dtype: DTypeLike) -> KVCache:
    shape = (rows, config.num_kv_heads, columns, config.head_dim)
    return tuple(
        LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        for _ in range(config.num_layers)
    )


def write(
    cache: LayerCache,
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    row: Int[Array, ""] | int,
    column: Int[Array, ""],
) -> LayerCache:
    """Write T columns of B rows, from (row, column) on."""
    at = (row, 0, column, 0)
    return LayerCache(
        jax.lax.dynamic_update_slice(cache.key, key.swapaxes(1, 2), at),
        jax.lax.dynamic_update_slice(cache.value, value.swapaxes(1, 2), at),
    )


def read_row(cache: LayerCache, row: Int[Array, ""]) -> LayerCache:
    """One row as a batch of one."""
    return LayerCache(*(jax.lax.dynamic_slice_in_dim(x, row, 1, axis=0) for x in cache))


def ring_mask(cursor: Int[Array, ""], lengths: Int[Array, "S"], columns: int) -> Bool[Array, "S C"]:
    """Columns that hold the last `lengths` tokens of each slot, the newest at `cursor`."""
    age = (cursor - jnp.arange(columns)) % columns
    return age[None, :] < lengths[:, None]


def resize_ring(
    cache: KVCache, cursor: Int[Array, ""], columns: int, rows: Int[Array, "S2"]
) -> tuple[KVCache, Int[Array, ""]]:
    """Copy the given slots into a ring of another size; `cursor` is the next column to write.

    The newest column becomes column min(old, new) - 1. A smaller ring keeps the newest columns.
    """
    old = cache[0].key.shape[2]
    kept = min(old, columns)

    def move(x: Array) -> Array:
        newest = jnp.roll(x[rows], -cursor, axis=2)[:, :, old - kept :]
        return jnp.pad(newest, ((0, 0), (0, 0), (0, columns - kept), (0, 0)))

    moved = tuple(LayerCache(move(layer.key), move(layer.value)) for layer in cache)
    return moved, jnp.full_like(cursor, kept % columns)
