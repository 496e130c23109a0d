"""One Flax NNX decoder for all model families: Qwen2/2.5, Qwen3, Llama 3.x.

    x = embedding[tokens]
    for each layer:
        x = x + attention(rms_norm(x))
        x = x + mlp(rms_norm(x))
    logits = head(rms_norm(x))

Layers are stacked along a leading axis and scanned, so compile time does not grow with depth.
Decoding runs the same `Block` layer by layer, unrolled. The caller says what a block attends to:
`attend(query, key, value)` may read and write any cache.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.rope import rope_frequencies
from rmr1_jax.ops.attention import matmul_precision
from rmr1_jax.ops.constrain import Constrain, unconstrained
from rmr1_jax.ops.cross_entropy import HeadLayout
from rmr1_jax.ops.packed_attention import KEPT, PackedAttention, packed_attention

Params = dict[str, Any]
Attend = Callable[
    [Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]],
    Float[Array, "B T N H"],
]
Rope = tuple[Float[Array, "B T H2"], Float[Array, "B T H2"]]

# What a layer keeps for the backward pass: everything, the matrix products, its input and the
# output of attention, or only its input.
Remat = Literal["none", "dots", "attention", "full"]
_keep = jax.checkpoint_policies
POLICIES = {
    "dots": _keep.save_from_both_policies(
        _keep.dots_with_no_batch_dims_saveable, _keep.save_only_these_names(KEPT)
    ),
    "attention": _keep.save_only_these_names(KEPT),
    "full": _keep.nothing_saveable,
}


class Adapter(nnx.Module):
    """The adapter of a projection: scale * (x A) B, with A [in..., r] and B [r, out...]."""

    def __init__(self, a: Array, b: Array, scale: Array):
        self.a, self.b, self.scale = nnx.Param(a), nnx.Param(b), nnx.Param(scale)

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        rank = self.a.shape[-1]
        a, b = self.a[...].reshape(-1, rank), self.b[...].reshape(rank, -1)
        precision = matmul_precision(x.dtype)
        narrow = jnp.matmul(x, a.astype(x.dtype), precision=precision)
        return self.scale[...].astype(x.dtype) * jnp.matmul(
            narrow, b.astype(x.dtype), precision=precision
        )


class Projection(nnx.Module):
    """y = x W + b from some named axes to others, plus an adapter if there is one.

    It is computed in the dtype of x, whatever the kernel is stored in. The kernel keeps its heads
    apart ([D, N, H]) for sharding, but multiplies as a plain matrix, because contracting two axes
    makes XLA transpose the kernel at every call.
    """

    def __init__(
        self, inputs: dict[str, int], outputs: dict[str, int], *, bias: bool = False, **common: Any
    ):
        normal = nnx.initializers.normal(math.prod(inputs.values()) ** -0.5)
        self.outputs = tuple(outputs.values())
        self.kernel = parameter(normal, {**inputs, **outputs}, **common)
        self.bias = parameter(nnx.initializers.zeros_init(), outputs, **common) if bias else None
        self.adapter: Adapter | None = nnx.data(None)

    def __call__(self, x: Float[Array, "B T ..."]) -> Float[Array, "B T ..."]:
        B, T = x.shape[:2]
        kernel = self.kernel[...].astype(x.dtype).reshape(-1, math.prod(self.outputs))
        precision = matmul_precision(x.dtype)
        x = x.reshape(B, T, -1)
        y = jnp.matmul(x, kernel, precision=precision)
        if self.adapter is not None:
            y = y + self.adapter(x)
        y = y.reshape(B, T, *self.outputs)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class RMSNorm(nnx.Module):
    """scale * x / sqrt(mean(x^2) + epsilon) over the last axis, computed in fp32."""

    def __init__(self, axis: str, size: int, epsilon: float, **common: Any):
        self.epsilon = epsilon
        self.scale = parameter(nnx.initializers.ones_init(), {axis: size}, **common)

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return wide.astype(x.dtype) * self.scale[...].astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; optional q/k norms (Qwen3) and biases.

    output(attend(rope(query(x)), rope(key(x)), value(x)))
    """

    def __init__(self, c: ModelConfig, **common: Any):
        D, H = {"embed": c.hidden_size}, {"head_dim": c.head_dim}
        q, kv = {"heads": c.num_heads, **H}, {"kv_heads": c.num_kv_heads, **H}
        self.query = Projection(D, q, bias=c.qkv_bias, **common)
        self.key = Projection(D, kv, bias=c.qkv_bias, **common)
        self.value = Projection(D, kv, bias=c.qkv_bias, **common)
        self.output = Projection(q, D, bias=c.output_bias, **common)
        if c.qk_norm:
            self.query_norm = RMSNorm("head_dim", c.head_dim, c.rms_norm_eps, **common)
            self.key_norm = RMSNorm("head_dim", c.head_dim, c.rms_norm_eps, **common)
        self.qk_norm = c.qk_norm

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: Rope,
        attend: Attend,
        constrain: Constrain = unconstrained,
    ) -> Float[Array, "B T D"]:
        query = constrain(self.query(x), ("batch", None, "heads", None))
        key, value = (
            constrain(projection(x), ("batch", None, "kv_heads", None))
            for projection in (self.key, self.value)
        )
        if self.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        attended = attend(apply_rope(query, rope), apply_rope(key, rope), value)
        return self.output(constrain(attended, ("batch", None, "heads", None)))


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, c: ModelConfig, **common: Any):
        D, F = {"embed": c.hidden_size}, {"mlp": c.intermediate_size}
        self.gate = Projection(D, F, bias=c.mlp_bias, **common)
        self.up = Projection(D, F, bias=c.mlp_bias, **common)
        self.down = Projection(F, D, bias=c.mlp_bias, **common)

    def __call__(
        self, x: Float[Array, "B T D"], constrain: Constrain = unconstrained
    ) -> Float[Array, "B T D"]:
        gate, up = (constrain(p(x), ("batch", None, "mlp")) for p in (self.gate, self.up))
        # The barrier keeps XLA from fusing this into the product and computing it for every tile.
        return self.down(jax.lax.optimization_barrier(jax.nn.silu(gate) * up))


class Block(nnx.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x)).

    With `layers=L` its leaves are stacked to [L, ...].
    """

    def __init__(self, c: ModelConfig, **common: Any):
        self.attention_norm = RMSNorm("embed", c.hidden_size, c.rms_norm_eps, **common)
        self.attention = Attention(c, **common)
        self.mlp_norm = RMSNorm("embed", c.hidden_size, c.rms_norm_eps, **common)
        self.mlp = MLP(c, **common)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: Rope,
        attend: Attend,
        constrain: Constrain = unconstrained,
    ) -> Float[Array, "B T D"]:
        whole, split = ("batch", None, None), ("batch", "sequence", None)
        normed = constrain(self.attention_norm(x), whole)
        x = x + constrain(self.attention(normed, rope, attend, constrain), split)
        normed = constrain(self.mlp_norm(x), whole)
        return x + constrain(self.mlp(normed, constrain), split)


class Embedding(nnx.Module):
    """Token embeddings, [V, D]."""

    def __init__(self, c: ModelConfig, **common: Any):
        normal = nnx.initializers.normal(c.hidden_size**-0.5)
        self.embedding = parameter(
            normal, {"vocab": c.vocab_size, "embed": c.hidden_size}, **common
        )


class Transformer(nnx.Module):
    """Decoder-only transformer.

    Args:
      config: dimensions and switches.
      dtype: compute dtype, bfloat16 or float32 (norms and softmax are fp32 in either).
      param_dtype: dtype the parameters are stored in.
      rngs: for random initial weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike = jnp.bfloat16,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = {"rngs": rngs, "param_dtype": param_dtype}
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.embed = Embedding(config, **common)
        self.layers = Block(config, layers=config.num_layers, **common)
        self.final_norm = RMSNorm("embed", config.hidden_size, config.rms_norm_eps, **common)
        if not config.tie_embeddings:
            D, V = {"embed": config.hidden_size}, {"vocab": config.vocab_size}
            self.lm_head = Projection(D, V, **common)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        response_ids: Int[Array, "B T"] | None = None,
        *,
        remat: Remat = "none",
        constrain: Constrain = unconstrained,
        attention: PackedAttention = packed_attention,
    ) -> Float[Array, "B T D"]:
        """Final hidden states (after the last norm) of causal, optionally packed rows.

        Args:
          tokens: token ids.
          positions: position of each token in its segment; 0..T-1 when absent.
          segment_ids: tokens attend only within their own id; all one segment when absent.
          response_ids: for segments with several responses to a prompt: 0 in the prompt, and the
            number of the response elsewhere. A response sees the prompt but no other response.
          remat: what to keep for the backward pass, which recomputes the rest.
          constrain: shards activations by the logical names of their axes. Between layers, the
            tokens of a row are the axis `sequence`, which may be split; within layers they are not.
          attention: `packed_attention`, or a kernel that computes the same.
        """
        B, T = tokens.shape
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(T), (B, T))
        rope = rope_angles(self.config, positions)
        graph, stacked = nnx.split(self.layers)

        def layer(x: Array, weights: nnx.State) -> tuple[Array, None]:
            return nnx.merge(graph, weights)(x, rope, attend, constrain), None

        def attend(query: Array, key: Array, value: Array) -> Array:
            return attention(query, key, value, segment_ids, response_ids)

        if remat != "none":
            layer = jax.checkpoint(layer, policy=POLICIES[remat], prevent_cse=False)
        x, _ = jax.lax.scan(layer, self.embed_tokens(tokens, constrain), stacked)
        return constrain(self.final_norm(x), ("batch", None, None))

    def embed_tokens(
        self, tokens: Int[Array, "B T"], constrain: Constrain = unconstrained
    ) -> Float[Array, "B T D"]:
        # Each device looks up tokens in its part of the table, so the table is never gathered.
        tokens = constrain(tokens, ("data_batch", None))
        x = constrain(self.embed.embedding[...][tokens], ("data_batch", None, "embed"))
        return constrain(x.astype(self.dtype), ("batch", "sequence", None))

    def head(self) -> tuple[Float[Array, "..."], HeadLayout]:
        """The output head as it is stored, and its layout, for `ops.cross_entropy`."""
        if self.config.tie_embeddings:
            return self.embed.embedding[...], "VD"
        return self.lm_head.kernel[...], "DV"

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Next-token logits in fp32."""
        if not self.config.tie_embeddings:
            return self.lm_head(hidden).astype(jnp.float32)
        table = self.embed.embedding[...].astype(hidden.dtype)
        precision = matmul_precision(hidden.dtype)
        # The table is the left operand, since a CPU would repack a right one at every step.
        logits = jnp.einsum("vd,btd->vbt", table, hidden, precision=precision)
        return jnp.moveaxis(logits, 0, -1).astype(jnp.float32)


def parameter(
    initializer: nnx.Initializer,
    shape: dict[str, int],
    *,
    rngs: nnx.Rngs,
    param_dtype: DTypeLike,
    layers: int | None = None,
) -> nnx.Param:
    """A parameter with the logical names of its axes (see `distributed/sharding_rules.py`).

    With `layers=L` it is a stack of L, whose first axis is "layers".
    """
    axes = tuple(shape) if layers is None else ("layers", *shape)
    sizes = tuple(shape.values()) if layers is None else (layers, *shape.values())
    return nnx.Param(initializer(rngs.params(), sizes, param_dtype), logical_axes=axes)


def rope_angles(config: ModelConfig, positions: Int[Array, "B T"]) -> Rope:
    """Cosines and sines of the rotation of each position, fp32 [B, T, H/2]."""
    frequencies, scaling = rope_frequencies(config)
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angles) * scaling, jnp.sin(angles) * scaling


def apply_rope(x: Float[Array, "B T N H"], rope: Rope) -> Float[Array, "B T N H"]:
    """Rotate the pairs (i, i + H/2) of each head, in fp32: Hugging Face's "rotate half"."""
    cosine, sine = (angle[:, :, None, :] for angle in rope)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def abstract_model(
    config: ModelConfig, *, dtype: DTypeLike = jnp.bfloat16, param_dtype: DTypeLike = jnp.float32
) -> Transformer:
    """A `Transformer` whose parameters are only shapes. Nothing is allocated."""
    return nnx.eval_shape(
        lambda: Transformer(config, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    )


def logical_axes(config: ModelConfig) -> Params:
    """The parameter tree with the tuple of logical axis names at each leaf."""
    state = nnx.state(abstract_model(config), nnx.Param)
    named = jax.tree.map(
        lambda leaf: leaf.get_metadata()["logical_axes"],
        state,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )
    return nnx.to_pure_dict(named)


def parameter_shapes(config: ModelConfig, param_dtype: DTypeLike = jnp.float32) -> Params:
    """The parameter tree with a `jax.ShapeDtypeStruct` at each leaf."""
    return nnx.to_pure_dict(nnx.state(abstract_model(config, param_dtype=param_dtype), nnx.Param))


def with_params(config: ModelConfig, params: Params, *, dtype: DTypeLike) -> Transformer:
    """A `Transformer` over an existing parameter tree (nested dict of arrays or tracers).

    If the tree has adapters (`models/lora.py`), the model has them too.
    """
    model = abstract_model(config, dtype=dtype)
    for part in ("attention", "mlp"):
        for name, leaves in params["layers"].get(part, {}).items():
            if "adapter" in leaves:
                projection = getattr(getattr(model.layers, part), name)
                projection.adapter = Adapter(**leaves["adapter"])
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def random_params(
    config: ModelConfig, seed: int = 0, param_dtype: DTypeLike = jnp.float32
) -> Params:
    """Random initial weights as a nested dict."""
    model = Transformer(config, param_dtype=param_dtype, rngs=nnx.Rngs(seed))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    dtype: DTypeLike = jnp.bfloat16,
) -> Float[Array, "B T V"]:
    """The fp32 logits of every position, for callers that need no module."""
    model = with_params(config, params, dtype=dtype)
    return model.logits(model(tokens, positions, segment_ids))
