"""The KV ring buffer: a slot sees only its own last tokens, wherever they are stored."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmr1_jax.models.kv_cache import KVCache, LayerCache, resize_cache, write
from rmr1_jax.ops.decode_attention import Live, live_mask


def ring(rows: int, length: int) -> KVCache:
    return (LayerCache(jnp.zeros((rows, 1, 1, length)), jnp.zeros((rows, 1, length, 1))),)


def write_steps(cache: KVCache, write_position: int, steps: range) -> tuple[KVCache, int]:
    """At each step every row writes 100 * row + step."""
    [layer] = cache
    rows, length = layer.key.shape[0], layer.length
    for step in steps:
        token = (100.0 * jnp.arange(rows) + step).reshape(rows, 1, 1, 1)
        layer = write(layer, token, -token, 0, jnp.int32(write_position))
        write_position = (write_position + 1) % length
    return (layer,), write_position


def visible(cache: KVCache, write_position: int, lengths: list[int]) -> list[list[float]]:
    """The tokens each row sees, oldest first."""
    [layer] = cache
    length = layer.length
    newest = jnp.full(len(lengths), (write_position - 1) % length)
    mask = np.asarray(live_mask(Live(newest, jnp.array(lengths)), length))
    keys = np.asarray(layer.key)[:, 0, 0, :]
    assert (np.asarray(layer.value)[:, 0, :, 0] == -keys).all()
    return [sorted(row[seen].tolist()) for row, seen in zip(keys, mask, strict=True)]


@settings(max_examples=30)
@given(st.integers(1, 40), st.lists(st.integers(0, 8), min_size=3, max_size=3))
def test_a_row_sees_its_last_tokens_however_often_the_ring_went_round(
    steps: int, lengths: list[int]
) -> None:
    lengths = [min(length, steps) for length in lengths]
    cache, write_position = write_steps(ring(3, 8), 0, range(steps))
    expected = [
        [100.0 * row + step for step in range(steps - length, steps)]
        for row, length in enumerate(lengths)
    ]
    assert visible(cache, write_position, lengths) == expected


@pytest.mark.parametrize("length", [8, 16, 4])
@pytest.mark.parametrize("steps", [3, 8, 13])
def test_a_ring_of_another_size_shows_the_same_and_goes_on(steps: int, length: int) -> None:
    cache, write_position = write_steps(ring(3, 8), 0, range(steps))
    lengths = [min(steps, 4), 2, 0]
    before = visible(cache, write_position, lengths)
    moved, place = resize_cache(cache, jnp.int32(write_position), length, jnp.array([2, 0, 1]))
    order = [lengths[2], lengths[0], lengths[1]]
    assert visible(moved, int(place), order) == [before[2], before[0], before[1]]
    [layer] = moved
    assert layer.key.shape == (3, 1, 1, length) and layer.length == length
    token = jnp.full((3, 1, 1, 1), 7.0)
    after = (write(layer, token, -token, 0, place),)
    assert [row[0] for row in visible(after, int(place) + 1, [1, 1, 1])] == [7.0, 7.0, 7.0]
