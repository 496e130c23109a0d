"""Responses that share a prompt: each sees the prompt and itself, and costs no more than that."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmr1_jax.ops import packed_attention as module
from rmr1_jax.ops.attention import attention
from rmr1_jax.ops.packed_attention import live_pairs, packed_attention

T = 40
# A prompt, and its responses; one of length 0 has a number and no token in the row.
Group = tuple[int, list[int]]
groups = st.tuples(st.integers(1, 12), st.lists(st.integers(0, 9), max_size=5))
rows = st.lists(groups, max_size=4)


def row_of(groups: list[Group], T: int = T) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids and response_ids of one row: groups one after another, cut at T, then padding."""
    segment_ids, response_ids, response = [], [], 0
    for segment, (prompt, responses) in enumerate(groups, start=1):
        segment_ids += [segment] * (prompt + sum(responses))
        response_ids += [0] * prompt
        for length in responses:
            response += 1
            response_ids += [response] * length
    fill = lambda ids: np.pad(np.array(ids[:T], np.int32), (0, T - len(ids[:T])))  # noqa: E731
    return fill(segment_ids), fill(response_ids)


def visible(segment_ids: np.ndarray, response_ids: np.ndarray) -> np.ndarray:
    """[queries, keys], token by token, as written in the docstring; padding sees only itself."""
    seen = np.zeros((len(response_ids), len(response_ids)), bool)
    for query in range(len(response_ids)):
        for key in range(query + 1):
            related = response_ids[key] in (0, response_ids[query])
            same = segment_ids[query] == segment_ids[key] > 0
            seen[query, key] = query == key or (same and related)
    return seen


def inputs_of(
    seed: int, *, B: int, N: int, K: int, T: int = T
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values."""
    rng = np.random.default_rng(seed)
    draw = lambda heads: jnp.asarray(rng.normal(0, 1, (B, T, heads, 8)), jnp.float32)  # noqa: E731
    return draw(N), draw(K), draw(K)


@functools.cache
def in_blocks(block: int) -> Any:
    return lambda q, k, v, ids, response_ids, mask: packed_attention(
        q, k, v, ids, response_ids, block=block
    )


def dense(q: Any, k: Any, v: Any, ids: Any, response_ids: Any, mask: jax.Array) -> jax.Array:
    return attention(q, k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), mask)


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(function: Any, inputs: Any, *ids: Any) -> Any:
    """Outputs, and gradients of a sum that weighs each number differently."""

    def loss(inputs: Any) -> tuple[jax.Array, jax.Array]:
        out = function(*inputs, *ids)
        return jnp.sum(jnp.cos(jnp.arange(out.size)).reshape(out.shape) * out), out

    gradients, out = jax.grad(loss, has_aux=True)(inputs)
    return out, *gradients


@settings(max_examples=30)
@given(
    batch=st.lists(rows, min_size=2, max_size=2),
    block=st.sampled_from([3, 8, 16]),
    seed=st.integers(0, 1000),
)
def test_ragged_groups_give_outputs_and_gradients_of_a_dense_mask(
    batch: list[list[Group]], block: int, seed: int
) -> None:
    inputs = inputs_of(seed, B=2, N=6, K=2)
    ids = [row_of(groups) for groups in batch]
    mask = np.stack([visible(*row) for row in ids])
    segment_ids, response_ids = (np.stack(x) for x in zip(*ids, strict=True))
    ours = with_gradients(in_blocks(block), inputs, segment_ids, response_ids, mask)
    expected = with_gradients(dense, inputs, segment_ids, response_ids, mask)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_a_response_knows_nothing_of_its_siblings() -> None:
    """Bit for bit, though their blocks are read: of masked scores nothing may remain."""
    segment_ids, response_ids = row_of([(5, [9, 8, 7]), (2, [4])])
    query, key, value = inputs_of(0, B=1, N=4, K=2)
    ids = jnp.asarray(segment_ids)[None], jnp.asarray(response_ids)[None]
    second = response_ids == 2
    others = jnp.asarray((response_ids == 1) | (segment_ids == 2))[None, :, None, None]
    attend = jax.jit(functools.partial(packed_attention, block=8))
    out = attend(query, key, value, *ids)
    disturbed = attend(query, key + 1e3 * others, value + 1e3 * others, *ids)
    np.testing.assert_array_equal(out[0, second], disturbed[0, second])
    assert not np.array_equal(out[0, response_ids == 1], disturbed[0, response_ids == 1])

    def of_second(key: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.sum(attend(query, key, value, *ids)[0, second] ** 2)

    for gradient in jax.grad(of_second, argnums=(0, 1))(key, value):
        seen = (segment_ids == 1) & ((response_ids == 0) | second)
        assert not np.asarray(gradient)[0, ~seen].any()
        assert np.asarray(gradient)[0, segment_ids == 1][0].any()


pairs = jax.jit(live_pairs, static_argnums=2)


@settings(max_examples=60)
@given(groups=rows, block=st.sampled_from([1, 4, 8]))
def test_pairs_of_blocks_live_exactly_where_something_is_seen(
    groups: list[Group], block: int
) -> None:
    segment_ids, response_ids = row_of(groups)
    filled = segment_ids > 0
    i, j, live = pairs(segment_ids[None], response_ids[None], block)
    seen = visible(segment_ids, response_ids) | np.tril(~filled[:, None] & ~filled)
    in_pairs = seen.reshape(T // block, block, T // block, block).any((1, 3))
    np.testing.assert_array_equal(live, in_pairs[np.asarray(i), np.asarray(j)])


def test_a_pair_of_blocks_lives_if_any_row_needs_it() -> None:
    together = [row_of([(8, [8, 8, 8])]), row_of([(16, [16, 8])])]
    segment_ids, response_ids = (jnp.asarray(np.stack(x)) for x in zip(*together, strict=True))
    apart = [live_pairs(segment_ids[row, None], response_ids[row, None], 8)[2] for row in range(2)]
    np.testing.assert_array_equal(
        live_pairs(segment_ids, response_ids, 8)[2], np.logical_or(apart[0], apart[1])
    )


@pytest.mark.parametrize("direction", ["forwards", "and backwards"])
def test_seven_responses_do_not_look_at_each_other(
    direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[tuple[int, int]] = []
    original = module._scores

    def counted(i: jax.Array, j: jax.Array, inputs: Any, block: int) -> jax.Array:
        jax.debug.callback(lambda i, j: met.append((int(i), int(j))), i, j)
        return original(i, j, inputs, block)

    monkeypatch.setattr(module, "_scores", counted)
    T = 72  # blocks of 4: two of the prompt, two of each response, two of padding
    ids = [jnp.asarray(x)[None] for x in row_of([(8, [8] * 7)], T)]
    inputs = inputs_of(0, B=1, N=2, K=1, T=T)
    attend = lambda inputs: packed_attention(*inputs, *ids, block=4).sum()  # noqa: E731
    jax.block_until_ready(attend(inputs) if direction == "forwards" else jax.grad(attend)(inputs))
    jax.effects_barrier()

    expected = {(i, i) for i in range(18)} | {(1, 0)}
    for first in range(2, 16, 2):
        expected |= {(first + 1, first)}
        expected |= {(first + at, of_prompt) for at in range(2) for of_prompt in range(2)}
    assert len(expected) == 54  # of the 171 that are not later
    times = 1 if direction == "forwards" else 2
    assert sorted(met) == sorted([*expected] * times)


def test_a_prompt_with_one_response_is_a_plain_row() -> None:
    """One response sees all before it, as in a plain row."""
    segment_ids, response_ids = row_of([(7, [12]), (3, [18])])
    inputs = inputs_of(1, B=1, N=4, K=2)
    ids = jnp.asarray(segment_ids)[None]
    plain = packed_attention(*inputs, ids, block=8)
    with_ids = packed_attention(*inputs, ids, jnp.asarray(response_ids)[None], block=8)
    np.testing.assert_array_equal(plain, with_ids)


def test_response_ids_alone_are_those_of_one_segment() -> None:
    _, ids = row_of([(10, [12, 18])])
    inputs = inputs_of(2, B=1, N=4, K=2, T=T - 3)  # the last block is not full
    response_ids = jnp.asarray(ids[: T - 3])[None]
    np.testing.assert_array_equal(
        packed_attention(*inputs, None, response_ids, block=8),
        packed_attention(*inputs, jnp.ones_like(response_ids), response_ids, block=8),
    )
