"""The configs of known checkpoints, for plans, which need no weights.

Dimensions are those of the published `config.json`.
"""

from rmr1_jax.errors import UserError
from rmr1_jax.models.model_config import ModelConfig, RopeConfig
from rmr1_jax.toy_task import tiny_model_config, toy_tokenizer


def _qwen2_5(
    layers: int, hidden: int, mlp: int, heads: int, kv_heads: int, *, tied: bool = False
) -> ModelConfig:
    return ModelConfig(
        model_type="qwen2",
        vocab_size=151_936 if tied else 152_064,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        max_position=32_768,
        rope=RopeConfig(theta=1e6),
        tie_embeddings=tied,
        qkv_bias=True,
    )


_7B = _qwen2_5(28, 3584, 18_944, 28, 4)
_14B = _qwen2_5(48, 5120, 13_824, 40, 8)
_32B = _qwen2_5(64, 5120, 27_648, 40, 8)

PRESETS: dict[str, ModelConfig] = {
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2_5(24, 896, 4864, 14, 2, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2_5(28, 1536, 8960, 12, 2, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": _7B,
    "Qwen/Qwen2.5-14B-Instruct": _14B,
    "Qwen/Qwen2.5-32B-Instruct": _32B,
    # The distilled models differ only in rope and norm constants, which do not affect plans.
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _7B,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": _14B,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": _32B,
    "Qwen/Qwen3-8B": ModelConfig(
        model_type="qwen3",
        vocab_size=151_936,
        hidden_size=4096,
        intermediate_size=12_288,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_position=40_960,
        rope=RopeConfig(theta=1e6),
        qk_norm=True,
    ),
    "meta-llama/Llama-3.1-8B-Instruct": ModelConfig(
        model_type="llama",
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_position=131_072,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=5e5),
    ),
}


def known_config(name: str) -> ModelConfig:
    """The config of a checkpoint by its name on the hub. Raises `UserError`."""
    if name not in PRESETS:
        raise UserError(
            f"{name} is not a known checkpoint (known are {', '.join(PRESETS)}); "
            "name a directory that holds its config.json"
        )
    return PRESETS[name]


def toy_model() -> ModelConfig:
    """The small decoder of the toy task, which starts from random weights."""
    described = tiny_model_config(len(toy_tokenizer()))
    return ModelConfig.from_hf(described, source="the toy task")
