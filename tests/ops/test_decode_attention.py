"""The decode kernel gives the numbers of masked attention, reads live blocks only, and compiles."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rmr1_jax.ops import decode_attention
from rmr1_jax.ops.attention import MASKED, PartialAttention, merge
from rmr1_jax.ops.decode_attention import (
    Live,
    LiveAttention,
    block_width,
    live_blocks,
    live_mask,
    masked,
)
from tests.topologies import devices_or_skip

interpreted = LiveAttention(interpret=True)


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unrolled kernels take long to interpret."""
    monkeypatch.setattr(decode_attention, "AT_ONCE", 3)


def random_caches(
    B: int, T: int, N: int, K: int, H: int, C: int, dtype: Any = jnp.float32
) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(B * C + N)
    shapes = (B, T, N, H), (B, K, H, C), (B, K, C, H)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def random_live(B: int, C: int) -> Live:
    """A row that holds nothing, one that is full, one with a single position, and others."""
    rng = np.random.default_rng(B + C)
    lengths = np.array([0, C, 1, *rng.integers(0, C + 1, B)])[:B]
    return Live(jnp.asarray(rng.integers(0, C, B)), jnp.asarray(lengths))


@functools.partial(jax.jit, static_argnums=0)
def attended(attention: Any, live: Live, *arrays: jax.Array) -> tuple[PartialAttention, jax.Array]:
    part = attention(live, arrays[1].shape[-1])(*arrays)
    return part, merge(part)


@pytest.mark.parametrize(
    ("B", "T", "N", "K", "H", "C"),
    [
        (5, 1, 6, 2, 64, 512),
        (4, 3, 4, 4, 128, 384),
        (9, 1, 7, 1, 128, 1024),
        (5, 1, 2, 1, 64, 2304),
    ],
)
def test_live_positions_give_what_masked_attention_gives(
    B: int, T: int, N: int, K: int, H: int, C: int
) -> None:
    arrays, live = random_caches(B, T, N, K, H, C), random_live(B, C)
    part, ours = attended(interpreted, live, *arrays)
    other, expected = attended(masked, live, *arrays)
    alive = np.asarray(live.length) > 0
    np.testing.assert_allclose(ours[alive], expected[alive], rtol=0, atol=1e-5)
    # And the weight that it has in a merge with other parts.
    log_total = lambda part: part.maximum + jnp.log(part.total)  # noqa: E731
    np.testing.assert_allclose(log_total(part)[alive], log_total(other)[alive], rtol=0, atol=1e-5)
    # A row that holds nothing adds nothing.
    assert (np.asarray(part.maximum)[~alive] == np.float32(MASKED)).all()
    assert not np.asarray(part.weighted_values)[~alive].any()


def test_rows_that_do_not_fit_the_chip_together_take_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode_attention, "_QUERY_ROOM", 3 * 16 * (4 * 128 + 128 * 8))
    arrays, live = random_caches(7, 1, 2, 1, 64, 256), random_live(7, 256)
    live = live._replace(length=live.length.at[3:6].set(0))  # the second turn has nothing to read
    program = str(jax.make_jaxpr(functools.partial(attended, interpreted))(live, *arrays))
    assert "grid=(3,)" in program
    ours, expected = (attended(way, live, *arrays)[1] for way in (interpreted, masked))
    alive = np.asarray(live.length) > 0
    np.testing.assert_allclose(ours[alive], expected[alive], rtol=0, atol=1e-5)


def test_blocks_without_live_positions_are_not_read() -> None:
    query, key, value = random_caches(6, 1, 2, 1, 64, 512)
    live = random_live(6, 512)
    blocks = np.asarray(live_mask(live, 512)).reshape(6, -1, block_width(512)).any(-1)
    dead = ~np.repeat(blocks, block_width(512), axis=1)
    poisoned = jnp.where(dead[:, None, :, None], jnp.nan, value)
    expected = attended(interpreted, live, query, key, value)[1]
    assert np.array_equal(attended(interpreted, live, query, key, poisoned)[1], expected)


def test_bfloat16_sums_in_fp32() -> None:
    arrays, live = random_caches(4, 1, 2, 1, 64, 384), random_live(4, 384)
    narrow = tuple(x.astype(jnp.bfloat16) for x in arrays)
    part, ours = attended(interpreted, live, *narrow)
    assert part.weighted_values.dtype == jnp.float32
    error = np.abs(ours - attended(masked, live, *arrays)[1])[np.asarray(live.length) > 0]
    assert error.mean() < 0.008


@settings(max_examples=40)
@given(st.data())
def test_the_list_is_the_blocks_with_live_positions_row_after_row(data: Any) -> None:
    width, of_row, rows = 4, data.draw(st.integers(1, 5)), 3
    length = width * of_row
    draw = lambda low, high: data.draw(st.lists(st.integers(low, high), min_size=3, max_size=3))  # noqa: E731
    live = Live(jnp.array(draw(0, length - 1)), jnp.array(draw(0, length)))
    found = jax.tree.map(np.asarray, live_blocks(live, length, width))
    assert found.row.shape == found.block.shape == (rows * of_row,)
    listed = [(int(r), int(b)) for r, b in zip(found.row, found.block, strict=True)]
    listed = listed[: found.until[-1]]
    alive = np.asarray(live_mask(live, length)).reshape(rows, of_row, width).any(-1)
    assert sorted(listed) == [(int(r), int(b)) for r, b in np.argwhere(alive)]
    assert [r for r, _ in listed] == sorted(r for r, _ in listed)
    assert found.until.tolist() == np.cumsum(alive.sum(1)).tolist()


def test_long_caches_have_wide_blocks_and_other_sizes_are_refused() -> None:
    widths = {128: 128, 384: 128, 2048: 128, 2176: 128, 2304: 256, 8192: 256}
    assert {length: block_width(length) for length in widths} == widths
    with pytest.raises(ValueError, match="multiple of 128, not 200"):
        block_width(200)


@pytest.mark.devices8
def test_devices_attend_for_their_own_heads() -> None:
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    arrays, live = random_caches(4, 1, 4, 2, 64, 256), random_live(4, 256)
    ours = in_groups(mesh, LiveAttention("tensor", interpret=True), live, *arrays)
    expected = attended(masked, live, *arrays)[1]
    alive = np.asarray(live.length) > 0
    np.testing.assert_allclose(ours[alive], expected[alive], rtol=0, atol=1e-5)


def in_groups(mesh: Mesh, attention: Any, *args: Any) -> Any:
    """As in sampling: rows are split by hand, heads by the compiler."""
    rows = PartitionSpec("data")
    return jax.jit(
        jax.shard_map(
            lambda *args: attended(attention, *args)[1],
            mesh=mesh,
            in_specs=rows,
            out_specs=rows,
            axis_names={"data"},
            check_vma=False,
        )
    )(*args)


@pytest.mark.parametrize(
    ("topology", "T"),
    [
        ("v4:2x2x1", 7),
        *(
            pytest.param(topology, T, marks=pytest.mark.nightly)
            for topology in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
            for T in (1, 7)
            if (topology, T) != ("v4:2x2x1", 7)
        ),
    ],
)
def test_the_kernel_compiles_for_every_chip(
    topology: str, T: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For responses and shared prompts, with wide blocks (Qwen2.5-7B) and narrow ones (0.5B).

    v4 has the least memory.
    """
    monkeypatch.undo()
    devices = np.array(devices_or_skip(topology))
    mesh = Mesh(devices.reshape(-1, 2), ("data", "tensor"))

    def of(dtype: Any, heads: int | None, *axes: int) -> Any:
        spec: list[str | None] = ["data"] + [None] * (len(axes) - 1)
        if heads is not None:
            spec[heads] = "tensor"
        placed = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(axes, dtype, sharding=placed)

    B, data = 8, len(devices) // 2
    for N, K, H, C in (28, 4, 128, 4096), (14, 2, 64, 1024):
        live = Live(of(jnp.int32, None, B * data), of(jnp.int32, None, B * data))
        arrays = (
            of(jnp.bfloat16, 2, B * data, T, N, H),
            of(jnp.bfloat16, 1, B * data, K, H, C),
            of(jnp.bfloat16, 1, B * data, K, C, H),
        )
        compiled = (
            jax.jit(functools.partial(in_groups, mesh, LiveAttention("tensor")))
            .lower(live, *arrays)
            .compile()
        )
        assert "decode_attention/pallas_call" in (compiled.as_text() or "")
        # The caches, of which each device has its rows and heads, are not written again.
        cache = B * K // 2 * C * H * 2
        memory: Any = compiled.memory_analysis()
        assert memory.temp_size_in_bytes < cache
