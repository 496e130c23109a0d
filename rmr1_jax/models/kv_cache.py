"""Keys and values of decoding, one pair of arrays per layer, updated in place.

Prompts and responses are stored apart. A prompt is stored once for all of its samples (a *prompt
slot*). Responses are stored in a ring buffer, which all slots write at one shared write position. A
refilled slot starts wherever the write position is. Every step therefore writes one position for
all slots (a dynamic-update-slice in place, no scatter), and any slot can be refilled at any time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from rmr1_jax.models.model_config import ModelConfig


class LayerCache(NamedTuple):
    """B prompt slots or slots, C positions. Keys are transposed (`partial_attention`)."""

    key: Float[Array, "B K H C"]
    value: Float[Array, "B K C H"]

    @property
    def length(self) -> int:
        return self.value.shape[2]


KVCache = tuple[LayerCache, ...]


def empty_cache(config: ModelConfig, rows: int, length: int, dtype: DTypeLike) -> KVCache:
    K, H = config.num_kv_heads, config.head_dim
    return tuple(
        LayerCache(jnp.zeros((rows, K, H, length), dtype), jnp.zeros((rows, K, length, H), dtype))
        for _ in range(config.num_layers)
    )


def write(
    cache: LayerCache,
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    row: Int[Array, ""] | int,
    position: Int[Array, ""],
) -> LayerCache:
    """Write T positions of B rows, starting at (row, position)."""
    return LayerCache(
        jax.lax.dynamic_update_slice(cache.key, key.transpose(0, 2, 3, 1), (row, 0, 0, position)),
        jax.lax.dynamic_update_slice(cache.value, value.swapaxes(1, 2), (row, 0, position, 0)),
    )


def read_row(cache: LayerCache, row: Int[Array, ""]) -> LayerCache:
    """One row as a batch of one."""
    return LayerCache(*(jax.lax.dynamic_slice_in_dim(x, row, 1, axis=0) for x in cache))


def resize_cache(
    cache: KVCache, write_position: Int[Array, ""], length: int, rows: Int[Array, "S2"]
) -> tuple[KVCache, Int[Array, ""]]:
    """Copy the given slots into a ring buffer of another length; also the new write position.

    The newest position becomes min(old, new) - 1. A shorter buffer keeps the newest positions.
    """
    old = cache[0].length
    kept = min(old, length)

    def move(x: Array, axis: int) -> Array:
        oldest_first = jnp.roll(x[rows], -write_position, axis)
        return fit(jax.lax.slice_in_dim(oldest_first, old - kept, old, axis=axis), length, axis)

    moved = tuple(LayerCache(move(layer.key, 3), move(layer.value, 2)) for layer in cache)
    return moved, jnp.full_like(write_position, kept % length)


def fit_cache(cache: KVCache, length: int) -> KVCache:
    """The cache with zeros appended, or positions dropped at the end."""
    return tuple(LayerCache(fit(x.key, length, 3), fit(x.value, length, 2)) for x in cache)


def fit(x: Array, size: int, axis: int) -> Array:
    """`x` with `size` entries along `axis`: zeros appended, or entries dropped at the end."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, max(size - x.shape[axis], 0))
    return jax.lax.slice_in_dim(jnp.pad(x, padding), 0, size, axis=axis)
