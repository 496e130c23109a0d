"""Attention in parts equals attention over everything, forwards and backwards, and torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmr1_jax.ops.attention import PartialAttention, attention, merge, partial_attention


def random_inputs(
    seed: int, *, B: int = 2, T: int = 3, S: int = 12, N: int = 6, K: int = 2, H: int = 8
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(0, 1, shape), jnp.float32)  # noqa: E731
    mask = rng.random((B, T, S)) < 0.6
    mask[:, :, 0] = True  # every query has a key
    return draw(B, T, N, H), draw(B, K, H, S), draw(B, K, S, H), jnp.asarray(mask)


def torch_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    out = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.mT, value, mask[:, None], enable_gqa=True
    )
    return out.transpose(1, 2)


@pytest.mark.parametrize(("N", "K"), [(6, 6), (6, 2), (6, 1)])
def test_outputs_and_gradients_are_those_of_torch(N: int, K: int) -> None:
    query, key, value, mask = random_inputs(0, N=N, K=K)
    ours = attention(query, key, value, mask)
    theirs = [torch.tensor(np.asarray(x), requires_grad=True) for x in (query, key, value)]
    expected = torch_attention(theirs[0], theirs[1], theirs[2], torch.tensor(np.asarray(mask)))
    np.testing.assert_allclose(ours, expected.detach().numpy(), atol=2e-6)
    expected.square().sum().backward()
    loss = lambda q, k, v: jnp.sum(attention(q, k, v, mask) ** 2)  # noqa: E731
    gradients = jax.grad(loss, argnums=(0, 1, 2))(query, key, value)
    for gradient, tensor in zip(gradients, theirs, strict=True):
        assert tensor.grad is not None
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=2e-5)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 11), scale=st.sampled_from([1.0, 30.0]))
def test_parts_merge_to_the_whole(seed: int, cut: int, scale: float) -> None:
    query, key, value, mask = random_inputs(seed)
    query = query * scale  # sharp distributions too
    first = partial_attention(query, key[..., :cut], value[:, :, :cut], mask[:, :, :cut])
    rest = partial_attention(query, key[..., cut:], value[:, :, cut:], mask[:, :, cut:])
    whole = attention(query, key, value, mask)
    tolerance = 3e-6 * scale  # a score of 100 is itself only known to 1e-5
    np.testing.assert_allclose(merge(first, rest), whole, atol=tolerance)
    np.testing.assert_allclose(merge(rest, first), whole, atol=tolerance)


def test_a_part_without_keys_changes_nothing_and_is_never_nan() -> None:
    query, key, value, mask = random_inputs(1)
    part = partial_attention(query, key, value, mask)
    nothing = partial_attention(query, key, 1e6 * value, jnp.zeros_like(mask))
    assert all(np.isfinite(leaf).all() for leaf in nothing)
    np.testing.assert_array_equal(merge(part, nothing), merge(part))

    def loss(key: jax.Array) -> jax.Array:
        empty = partial_attention(query, key, value, jnp.zeros_like(mask))
        return jnp.sum(merge(part, empty))

    assert np.isfinite(jax.grad(loss)(jnp.asarray(key))).all()


def test_scores_and_sums_are_fp32_whatever_the_inputs() -> None:
    query, key, value, mask = random_inputs(2, S=512)
    q, k, v = (x.astype(jnp.bfloat16) for x in (query, key, value))
    part = partial_attention(q, k, v, mask)
    assert all(leaf.dtype == jnp.float32 for leaf in PartialAttention(*part))
    out = attention(q, k, v, mask)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        out.astype(np.float32), attention(query, key, value, mask), atol=0.03
    )
