"""Attention in blocks equals masked attention over whole rows, and reads only live blocks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmr1_jax.ops import packed_attention as module
from rmr1_jax.ops.attention import attention
from rmr1_jax.ops.packed_attention import packed_attention


def random_inputs(
    seed: int, *, B: int = 2, T: int = 24, N: int = 6, K: int = 2, H: int = 8
) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    draw = lambda heads: jnp.asarray(rng.normal(0, 1, (B, T, heads, H)), jnp.float32)  # noqa: E731
    return draw(N), draw(K), draw(K)


def packed_rows(seed: int, B: int, T: int) -> jax.Array:
    """Segment ids 1, 2, ... of random lengths, and 0 for a random tail, in each row."""
    rng = np.random.default_rng(seed)
    rows = 1 + np.cumsum(rng.random((B, T)) < 0.15, axis=1)
    return jnp.asarray(np.where(np.arange(T) < rng.integers(0, T + 1, (B, 1)), rows, 0))


def whole_rows(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array | None
) -> jax.Array:
    """The reference: a mask over [T, T]."""
    T = query.shape[1]
    mask = jnp.tril(jnp.ones((T, T), bool))[None]
    if segment_ids is not None:
        mask = mask & (segment_ids[:, :, None] == segment_ids[:, None, :])
    return attention(query, key.transpose(0, 2, 3, 1), value.swapaxes(1, 2), mask)


@functools.cache
def in_blocks(block: int) -> Any:
    return functools.partial(packed_attention, block=block)


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(function: Any, segment_ids: jax.Array | None, *inputs: jax.Array) -> Any:
    """Outputs, and gradients of a sum that weighs each number but those of padding differently."""
    learnt = 1.0 if segment_ids is None else (segment_ids > 0)[..., None, None]

    def loss(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = function(*inputs, segment_ids)
        weights = jnp.cos(jnp.arange(out.size)).reshape(out.shape) * learnt
        return jnp.sum(weights * out), out

    gradients, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*inputs)
    return out, *gradients


@pytest.mark.parametrize(
    ("T", "block", "packed"),
    [
        (1, 8, False),
        (24, 24, False),
        (29, 8, False),
        (24, 24, True),
        (29, 8, True),
        (5, 1, True),
        pytest.param(1, 8, True, marks=pytest.mark.nightly),
        pytest.param(24, 8, True, marks=pytest.mark.nightly),
        pytest.param(24, 8, False, marks=pytest.mark.nightly),
        pytest.param(5, 1, False, marks=pytest.mark.nightly),
    ],
)
def test_blocks_give_outputs_and_gradients_of_whole_rows(T: int, block: int, packed: bool) -> None:
    for seed in range(5):
        inputs = random_inputs(seed, T=T)
        segment_ids = packed_rows(seed, 2, T) if packed else None
        ours = with_gradients(in_blocks(block), segment_ids, *inputs)
        expected = with_gradients(whole_rows, segment_ids, *inputs)
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=5e-6)


@pytest.mark.parametrize(("N", "K"), [(4, 4), (6, 3), (4, 1)])
def test_every_grouping_of_heads_agrees(N: int, K: int) -> None:
    inputs = random_inputs(0, N=N, K=K)
    ours = with_gradients(in_blocks(8), None, *inputs)
    for a, b in zip(ours, with_gradients(whole_rows, None, *inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-6)


def test_rows_longer_than_a_block_of_the_platform_agree() -> None:
    inputs = random_inputs(0, B=1, T=300)
    segment_ids = packed_rows(0, 1, 300)
    ours = jax.jit(packed_attention)(*inputs, segment_ids)
    np.testing.assert_allclose(ours, whole_rows(*inputs, segment_ids), rtol=0, atol=5e-6)


def test_padding_is_finite_and_learns_nothing() -> None:
    inputs = random_inputs(0)
    segment_ids = jnp.ones((2, 24), int).at[0, 5:].set(0).at[1].set(0)
    out, *gradients = with_gradients(in_blocks(8), segment_ids, *inputs)
    assert np.isfinite(out).all()
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert not np.asarray(gradient)[np.asarray(segment_ids) == 0].any()
        assert np.asarray(gradient)[0, :5].any()


def test_only_blocks_that_share_a_segment_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[tuple[int, int]] = []
    original = module._scores

    def counted(i: jax.Array, j: jax.Array, inputs: Any, block: int) -> jax.Array:
        jax.debug.callback(lambda i, j: met.append((int(i), int(j))), i, j)
        return original(i, j, inputs, block)

    monkeypatch.setattr(module, "_scores", counted)
    inputs = random_inputs(0, B=1, T=20)
    segment_ids = jnp.asarray(np.repeat([1, 2, 3, 0], [6, 5, 5, 4]))[None]  # blocks of 4

    packed_attention(*inputs, segment_ids, block=4)
    jax.effects_barrier()
    diagonal = {(i, i) for i in range(5)}
    assert sorted(met) == sorted(diagonal | {(1, 0), (2, 1), (3, 2)})

    met.clear()
    packed_attention(*inputs, block=4)
    jax.effects_barrier()
    assert sorted(met) == [(i, j) for i in range(5) for j in range(i + 1)]


def test_bfloat16_sums_in_fp32() -> None:
    inputs = random_inputs(0, T=256)
    narrow = tuple(x.astype(jnp.bfloat16) for x in inputs)
    out, *gradients = with_gradients(in_blocks(64), None, *narrow)
    expected = with_gradients(whole_rows, None, *inputs)
    for ours, exact in zip((out, *gradients), expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.abs(ours.astype(np.float32) - exact)
        assert error.mean() < 0.006 * np.abs(exact).mean()


def test_sharp_scores_overflow_nothing() -> None:
    query, key, value = random_inputs(0)
    ours = with_gradients(in_blocks(8), None, 1e3 * query, key, value)
    assert all(np.isfinite(x).all() for x in ours)
    np.testing.assert_allclose(ours[0], whole_rows(1e3 * query, key, value, None), atol=1e-3)


def test_a_long_row_never_holds_its_square() -> None:
    """At RM-R1's row length, as compiled: the scores of 4 heads alone would be 2.25 GiB."""
    T, N, K, H = 12_288, 4, 2, 64
    shapes = [jax.ShapeDtypeStruct((1, T, heads, H), jnp.bfloat16) for heads in (N, K, K)]
    segment_ids = jax.ShapeDtypeStruct((1, T), jnp.int32)
    step = jax.jit(lambda *x: with_gradients(packed_attention, *x))
    memory: Any = step.lower(segment_ids, *shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**27
