"""Frequencies of rotary position embeddings, for every scaling kind that `RopeConfig` names."""

import math

import numpy as np
from jaxtyping import Float32

from rmr1_jax.errors import UserError
from rmr1_jax.models.model_config import ModelConfig, RopeConfig

Frequencies = Float32[np.ndarray, "half_head"]


def rope_frequencies(
    config: ModelConfig, length_hint: int | None = None
) -> tuple[Frequencies, float]:
    """Inverse frequencies [H/2] in radians per position, and the factor on cos and sin.

    `length_hint` is the length in tokens of the longest sequence (default: `max_position`). It only
    matters for the type `dynamic`, whose frequencies depend on the length. Up to `max_position`
    tokens they are those of `default`. Beyond that, cached keys would have to be rotated again at
    every token, so a longer length is refused with a `UserError`.

    Sources: linear, dynamic: transformers `modeling_rope_utils`; yarn: Peng et al. 2023
    (arXiv 2309.00071) §3; llama3: the Llama 3.1 release, as in transformers.
    """
    rope, dim = config.rope, config.head_dim
    if rope.type == "dynamic" and length_hint is not None and length_hint > config.max_position:
        raise UserError(
            "rope type 'dynamic' is exact only up to max_position_embeddings = "
            f"{config.max_position} tokens and {length_hint} are asked for: beyond that its "
            "frequencies change with every token. Shorten the context, or use a checkpoint with "
            "yarn or llama3 scaling."
        )
    inverse = (1.0 / _wavelengths(rope.theta, dim)).astype(np.float32)
    if rope.type == "linear":
        return inverse / np.float32(rope.factor), 1.0
    if rope.type == "llama3":
        return _llama3(rope, inverse), 1.0
    if rope.type == "yarn":
        return _yarn(rope, dim)
    return inverse, 1.0


def _wavelengths(theta: float, dim: int) -> Frequencies:
    """theta^(2i/H): positions per radian, for i = 0 .. H/2 - 1."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.power(np.float32(theta), exponents)


def _llama3(rope: RopeConfig, inverse: Frequencies) -> Frequencies:
    """Divide low frequencies by the factor, keep high ones, and interpolate between them."""
    trained = float(rope.original_max_position or 0)
    turns = trained * inverse / np.float32(2 * math.pi)  # full turns within the trained length
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return ((1 - smooth) * inverse / rope.factor + smooth * inverse).astype(np.float32)


def _yarn(rope: RopeConfig, dim: int) -> tuple[Frequencies, float]:
    """Interpolate frequencies that turn less than `beta_slow` times in the trained length."""

    def dimension_turning(turns: float) -> float:
        trained = float(rope.original_max_position or 0)
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_turning(rope.beta_fast), dimension_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    ramp = np.clip(
        (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(width), 0, 1
    )
    wavelengths = _wavelengths(rope.theta, dim)
    kept, interpolated = 1.0 / wavelengths, 1.0 / (np.float32(rope.factor) * wavelengths)
    inverse = interpolated * ramp + kept * (1 - ramp)
    return inverse.astype(np.float32), _yarn_attention_factor(rope)


def _yarn_attention_factor(rope: RopeConfig) -> float:
    def temperature(mscale: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * mscale * math.log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return temperature(rope.mscale) / temperature(rope.mscale_all_dim)
    return temperature(1.0)
