"""Keys and values of decoding, one pair of arrays per layer, updated in place.

Prompts and responses are stored apart. A prompt is stored once for the whole group that answers it
(a *prompt slot*). Responses are stored in a ring of columns, which all slots write at one shared
write position: a slot that is refilled starts wherever the write position is, and its first token
is its oldest column. So every step writes one column for all slots (a dynamic-update-slice in
place, no scatter), and any slot can be refilled at any time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from rmr1_jax.models.model_config import ModelConfig


class LayerCache(NamedTuple):
    """B prompt slots or slots, C columns. Keys lie transposed (`partial_attention`)."""

    key: Float[Array, "B K H C"]
    value: Float[Array, "B K C H"]

    @property
    def columns(self) -> int:
        return self.value.shape[2]


KVCache = tuple[LayerCache, ...]


def empty_cache(config: ModelConfig, rows: int, columns: int, dtype: DTypeLike) -> KVCache:
    K, H = config.num_kv_heads, config.head_dim
    return tuple(
        LayerCache(jnp.zeros((rows, K, H, columns), dtype), jnp.zeros((rows, K, columns, H), dtype))
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
    return LayerCache(
        jax.lax.dynamic_update_slice(cache.key, key.transpose(0, 2, 3, 1), (row, 0, 0, column)),
        jax.lax.dynamic_update_slice(cache.value, value.swapaxes(1, 2), (row, 0, column, 0)),
    )


def read_row(cache: LayerCache, row: Int[Array, ""]) -> LayerCache:
    """One row as a batch of one."""
    return LayerCache(*(jax.lax.dynamic_slice_in_dim(x, row, 1, axis=0) for x in cache))


def resize_cache(
    cache: KVCache, write_position: Int[Array, ""], columns: int, rows: Int[Array, "S2"]
) -> tuple[KVCache, Int[Array, ""]]:
    """Copy the given slots into a ring of another size; `write_position` is the next column.

    The newest column becomes column min(old, new) - 1. A smaller ring keeps the newest columns.
    """
    old = cache[0].columns
    kept = min(old, columns)

    def move(x: Array, axis: int) -> Array:
        oldest_first = jnp.roll(x[rows], -write_position, axis)
        return fit(jax.lax.slice_in_dim(oldest_first, old - kept, old, axis=axis), columns, axis)

    moved = tuple(LayerCache(move(layer.key, 3), move(layer.value, 2)) for layer in cache)
    return moved, jnp.full_like(write_position, kept % columns)


def fit_columns(cache: KVCache, columns: int) -> KVCache:
    """Zero columns added, or the last columns dropped."""
    return tuple(LayerCache(fit(x.key, columns, 3), fit(x.value, columns, 2)) for x in cache)


def fit(x: Array, size: int, axis: int) -> Array:
    """`x` with `size` entries along `axis`: zeros added or entries dropped at the end."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, max(size - x.shape[axis], 0))
    return jax.lax.slice_in_dim(jnp.pad(x, padding), 0, size, axis=axis)
