"""The KV of prompts, and of what many prompts begin with; and the model, block by block."""

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
    """The blocks of the model, one by one, over decode weights."""

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
        """Hidden states before the last norm; `attend(layer, query, key, value)`."""
        rope = rope_angles(self.config, positions)
        x = self.embed_tokens(tokens)
        for index, block in enumerate(self.blocks):
            x = block(x, rope, lambda *qkv, index=index: attend(index, *qkv))
        return x


class Prefix(NamedTuple):
    """What many prompts begin with, and how many tokens of it each of B queries has before it.

    Its KV is one row, read once for all queries, however many prompts they belong to.
    """

    cache: KVCache
    shared: Int[Array, "B"]

    def ask(self, layer: int, query: Float[Array, "B T N H"]) -> list[PartialAttention]:
        """Attention of the queries to it: one part, or none where there is no prefix."""
        if not self.cache:
            return []
        B, T = query.shape[:2]
        columns = jnp.arange(self.cache[layer].columns)
        mask = columns < jnp.repeat(self.shared, T)[:, None]
        # The queries of all rows as those of one.
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
    """The KV of `tokens[:length]`, which follow the prefix, in a row; how many were computed."""
    width = len(tokens)
    chunk = min(PREFILL_CHUNK, width)
    chunks = (length + chunk - 1) // chunk
    columns = jnp.arange(width)

    def prefill_chunk(index: Int[Array, ""], cache: KVCache) -> KVCache:
        # The last chunk is moved back where it would pass the end: some tokens are done again.
        first = jnp.minimum(index * chunk, width - chunk)
        positions = first + jnp.arange(chunk)
        mask = (columns[None, :] <= positions[:, None])[None]
        written = list(cache)

        def attend(layer: int, query: Array, key: Array, value: Array) -> Array:
            written[layer] = write(written[layer], key, value, row, first)
            own = partial_attention(query, *read_row(written[layer], row), mask)
            return merge(own, *prefix.ask(layer, query)).astype(query.dtype)

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
    """The KV of tokens that many prompts begin with, for `EngineState.prefix`; and the work done.

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
