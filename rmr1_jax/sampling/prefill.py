"""The KV of prompts, and of what many prompts begin with; and the model, block by block."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rmr1_jax.models.config import ModelConfig
from rmr1_jax.models.kv_cache import KVCache, empty_cache, read_row, write
from rmr1_jax.models.transformer import (
    Params,
    Transformer,
    abstract_model,
    rope_angles,
    with_params,
)
from rmr1_jax.ops.attention import attention
from rmr1_jax.sampling.state import Counters

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


def prefill(
    model: Decoder,
    tokens: Int[Array, "P"],
    start: Int[Array, ""] | int,
    end: Int[Array, ""],
    cache: KVCache,
    row: Int[Array, ""],
) -> tuple[KVCache, Int[Array, ""]]:
    """The KV of `tokens[start:end]`, in a row that holds what is before; how many were computed."""
    width = len(tokens)
    chunk = min(PREFILL_CHUNK, width)
    chunks = (end - start + chunk - 1) // chunk
    columns = jnp.arange(width)

    def prefill_chunk(index: Int[Array, ""], cache: KVCache) -> KVCache:
        # The last chunk is moved back where it would pass the end: some tokens are done again.
        first = jnp.minimum(start + index * chunk, width - chunk)
        positions = first + jnp.arange(chunk)
        mask = (columns[None, :] <= positions[:, None])[None]
        written = list(cache)

        def attend(layer: int, query: Array, key: Array, value: Array) -> Array:
            written[layer] = write(written[layer], key, value, row, first)
            return attention(query, *read_row(written[layer], row), mask)

        some = jax.lax.dynamic_slice(tokens, (first,), (chunk,))
        model.blocks_over(some[None], positions[None], attend)
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
    prefix, computed = prefill(model, tokens, 0, length, empty, jnp.int32(0))
    return prefix, replace(counters, prefill_tokens=counters.prefill_tokens + computed)
