"""Attention in parts that merge exactly: one entry point for prefill, decoding and packed rows.

A query may attend to keys in several places (a prompt shared by a group, the row's own response).
Each place gives a `PartialAttention`. `merge` joins them by their log-sum-exp, which is
algebraically one softmax over all keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

# Finite, so that a fully masked part merges with weight exp(-1e30 - max) = 0 instead of NaN.
MASKED = -1e30


class PartialAttention(NamedTuple):
    """Unnormalised attention over one set of keys, in fp32."""

    weighted_values: Float[Array, "B T N H"]
    maximum: Float[Array, "B T N"]
    total: Float[Array, "B T N"]


def partial_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K H S"],
    value: Float[Array, "B K S H"],
    mask: Bool[Array, "B #T S"],
) -> PartialAttention:
    """Attend from N query heads to K key heads (N a multiple of K), softmax in fp32.

    Keys and values have heads before positions, and keys are transposed, as in the caches. Both
    products then read their right side row by row. With the usual layouts XLA would repack it at
    every call, which costs several times the product itself on CPU.
    """
    B, T, N, H = query.shape
    K = key.shape[1]
    groups = N // K
    precision = matmul_precision(query.dtype)
    # [B, K, T, groups] rows share a key head.
    rows = (query * H**-0.5).reshape(B, T, K, groups, H).transpose(0, 2, 1, 3, 4)
    scores = jnp.einsum(
        "bkrh,bkhs->bkrs",
        rows.reshape(B, K, T * groups, H),
        key,
        precision=precision,
        preferred_element_type=jnp.float32,
    ).reshape(B, K, T, groups, -1)
    scores = jnp.where(mask[:, None, :, None, :], scores, MASKED)
    maximum = scores.max(-1)
    weights = jnp.exp(scores - maximum[..., None])
    total = weights.sum(-1)
    weighted = jnp.einsum(
        "bkrs,bksh->bkrh",
        weights.reshape(B, K, T * groups, -1).astype(value.dtype),
        value,
        precision=precision,
        preferred_element_type=jnp.float32,
    ).reshape(B, K, T, groups, H)
    to_heads = lambda x: x.swapaxes(1, 2).reshape(B, T, N, *x.shape[4:])  # noqa: E731
    return PartialAttention(to_heads(weighted), to_heads(maximum), to_heads(total))


def merge(*parts: PartialAttention) -> Float[Array, "B T N H"]:
    """One softmax over the keys of all parts (the log-sum-exp merge)."""
    if len(parts) == 1:
        return parts[0].weighted_values / parts[0].total[..., None]
    maximum = jnp.max(jnp.stack([part.maximum for part in parts]), axis=0)
    weighted = jnp.zeros_like(parts[0].weighted_values)
    total = jnp.zeros_like(maximum)
    for part in parts:
        scale = jnp.exp(part.maximum - maximum)
        weighted += part.weighted_values * scale[..., None]
        total += part.total * scale
    return weighted / total[..., None]


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K H S"],
    value: Float[Array, "B K S H"],
    mask: Bool[Array, "B #T S"],
) -> Float[Array, "B T N H"]:
    """Softmax attention in fp32, in the dtype of `query`. Each query needs an unmasked key.

    The plain reference of packed, grouped and decoding attention.
    """
    return merge(partial_attention(query, key, value, mask)).astype(query.dtype)


def matmul_precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Full precision for fp32 operands, which accelerators would multiply in bf16 or tf32."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
