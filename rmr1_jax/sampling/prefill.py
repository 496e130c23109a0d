"""Prefill: the keys and values of prompts and of their common prefix."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rmr1_jax.models.kv_cache import KVCache, empty_cache, read_row, write
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import (
    Params,
    Transformer,
    abstract_model,
    rope_angles,
    with_params,
)
from rmr1_jax.ops.attention import PartialAttention, merge, partial_attention
from rmr1_jax.sampling.decode_state import Counters

PREFILL_CHUNK = 256


class Decoder:
    """The model with unrolled layers, over the weights of `unstack_layers`."""

    def __init__(self, config: ModelConfig, weights: Params):
        self.config = config
        stacked = nnx.split(abstract_model(config).layers)
        graph, shapes = stacked
        self.blocks = []
        for layer in weights["layers"]:
            state = jax.tree.map(lambda x: x, shapes)
            nnx.replace_by_pure_dict(state, layer)
            self.blocks.append(nnx.merge(graph, state))
        dtype = weights["embed"]["embedding"].dtype
        outer: Transformer = with_params(config, {**weights, "layers": {}}, dtype=dtype)
        self.embed_tokens, self.final_norm = outer.embed_tokens, outer.final_norm
        self.logits = outer.logits

    def blocks_over(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        attend: Callable[[int, Array, Array, Array], Array],
    ) -> Float[Array, "B T D"]:
        """Hidden states before the final norm, with `attend(layer, query, key, value)`."""
        rope = rope_angles(self.config, positions)
        x = self.embed_tokens(tokens)
        for index, block in enumerate(self.blocks):
            x = block(x, rope, lambda *qkv, index=index: attend(index, *qkv))
        return x


class Prefix(NamedTuple):
    """A common prefix of prompts, and how many of its tokens each of B rows begins with.

    Its keys and values are a single row, which is read once for all queries.
    """

    cache: KVCache
    shared: Int[Array, "B"]

    def attend(self, layer: int, query: Float[Array, "B T N H"]) -> list[PartialAttention]:
        """Attention of the queries to the prefix: one part, or none if there is no prefix."""
        if not self.cache:
            return []
        B, T = query.shape[:2]
        key_positions = jnp.arange(self.cache[layer].length)
        mask = key_positions < jnp.repeat(self.shared, T)[:, None]
        # The prefix is one row, so the queries of all rows become those of one.
        part = partial_attention(
            query.reshape(1, B * T, *query.shape[2:]), *self.cache[layer], mask[None]
        )
        return [PartialAttention(*(x.reshape(B, T, *x.shape[2:]) for x in part))]


def prefill(
    model: Decoder,
    tokens: Int[Array, "P"],
    length: Int[Array, ""],
    cache: KVCache,
    row: Int[Array, ""],
    prefix: Prefix,
) -> tuple[KVCache, Int[Array, ""]]:
    """Write the KV of `tokens[:length]`, which follow the prefix, into one row of the cache.

    Also returns how many positions were computed.
    """
    width = len(tokens)
    chunk = min(PREFILL_CHUNK, width)
    chunks = (length + chunk - 1) // chunk
    key_positions = jnp.arange(width)

    def prefill_chunk(index: Int[Array, ""], cache: KVCache) -> KVCache:
        # A last chunk that would pass the end starts earlier and computes some tokens again.
        first = jnp.minimum(index * chunk, width - chunk)
        positions = first + jnp.arange(chunk)
        mask = (key_positions[None, :] <= positions[:, None])[None]
        written = list(cache)

        def attend(layer: int, query: Array, key: Array, value: Array) -> Array:
            written[layer] = write(written[layer], key, value, row, first)
            own = partial_attention(query, *read_row(written[layer], row), mask)
            return merge(own, *prefix.attend(layer, query)).astype(query.dtype)

        some = jax.lax.dynamic_slice(tokens, (first,), (chunk,))
        model.blocks_over(some[None], prefix.shared[:, None] + positions, attend)
        return tuple(written)

    return jax.lax.fori_loop(0, chunks, prefill_chunk, cache), chunks * chunk


def prefill_prefix(
    config: ModelConfig,
    weights: Params,
    counters: Counters,
    tokens: Int[Array, "W"],
    length: Int[Array, ""],
) -> tuple[KVCache, Counters]:
    """The KV of a common prefix, for `EngineState.prefix`, and the updated counters.

    Args:
      config: the model's.
      weights: from `unstack_layers`.
      counters: before.
      tokens: padded.
      length: traced.
    """
    model = Decoder(config, weights)
    empty = empty_cache(config, 1, len(tokens), weights["embed"]["embedding"].dtype)
    nothing = Prefix((), jnp.zeros(1, jnp.int32))
    prefix, computed = prefill(model, tokens, length, empty, jnp.int32(0), nothing)
    return prefix, replace(counters, prefill_tokens=counters.prefill_tokens + computed)
