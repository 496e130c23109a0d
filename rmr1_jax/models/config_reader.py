"""Reads a Hugging Face `config.json` into a `ModelConfig`, or says why it cannot be."""

from collections.abc import Mapping
from typing import Any, get_args

from rmr1_jax.errors import UserError
from rmr1_jax.models.model_config import (
    ARCHITECTURES,
    PROMPT_KEY,
    ModelConfig,
    RopeConfig,
    RopeType,
)

# What the transformers config class of each type assumes for a key that config.json leaves out.
_QWEN_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": _QWEN_DEFAULTS,
    "qwen3": {**_QWEN_DEFAULTS, "head_dim": 128},
}


class ConfigReader:
    """One config.json being read: looks keys up, checks them, names the file in what it refuses."""

    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        self.config = config
        self.source = source
        self.model_type = self._supported_type()

    def _supported_type(self) -> str:
        supported = ", ".join(ARCHITECTURES)
        model_type = self.config.get("model_type")
        if model_type is None:
            raise UserError(
                f"{self.source} has no model_type. Add the model_type of the architecture; "
                f"supported are {supported}."
            )
        if model_type not in ARCHITECTURES:
            raise UserError(
                f"{self.source}: model_type {model_type!r} is not supported; "
                f"supported are {supported}."
            )
        expected = ARCHITECTURES[model_type]
        names = self.config.get("architectures")
        if names and expected not in names:
            raise UserError(
                f"{self.source}: architecture {', '.join(map(str, names))} is not supported; "
                f"supported are {', '.join(ARCHITECTURES.values())} "
                f"(a model of type {model_type} must be {expected})."
            )
        return str(model_type)

    def fail(self, problem: str) -> UserError:
        return UserError(f"{self.source}: {problem}")

    def get(self, key: str) -> Any:
        return self.config.get(key, _DEFAULTS[self.model_type].get(key))

    def integer(self, key: str) -> int:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.fail(f"{key} must be a positive integer, found {value!r}.")
        return value

    def number(self, values: Mapping[str, Any], key: str, default: float | None) -> float:
        value = values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            found = "is missing" if value is None else f"must be a number, found {value!r}"
            raise self.fail(f"{key} {found}.")
        return float(value)

    def optional_number(self, values: Mapping[str, Any], key: str) -> float | None:
        return None if values.get(key) is None else self.number(values, key, None)

    def switch(self, key: str) -> bool:
        value = self.config.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.fail(f"{key} must be true or false, found {value!r}.")
        return bool(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise self.fail(f"{key} must be a token id or a list of them, found {value!r}.")
        return tuple(i for i in ids if i >= 0)

    def token_id(self, key: str) -> int | None:
        ids = self.token_ids(key)
        return ids[0] if ids else None

    def model(self) -> ModelConfig:
        self.refuse_what_is_computed_differently()
        hidden, heads = self.integer("hidden_size"), self.integer("num_attention_heads")
        kv_heads = (
            heads
            if self.get("num_key_value_heads") is None
            else self.integer("num_key_value_heads")
        )
        if heads % kv_heads:
            raise self.fail(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}."
            )
        if self.get("head_dim") is not None:
            head_dim = self.integer("head_dim")
        elif hidden % heads:
            raise self.fail(
                f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, "
                "and there is no head_dim."
            )
        else:
            head_dim = hidden // heads
        if head_dim % 2:
            raise self.fail(f"head_dim {head_dim} is odd; rotary embeddings need an even one.")
        attention_bias = self.model_type != "qwen2" and self.switch("attention_bias")
        return ModelConfig(
            model_type=self.model_type,
            vocab_size=self.integer("vocab_size"),
            hidden_size=hidden,
            intermediate_size=self.integer("intermediate_size"),
            num_layers=self.integer("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_position=self.integer("max_position_embeddings"),
            rms_norm_eps=self.number(self.config, "rms_norm_eps", 1e-6),
            rope=self.rope(),
            tie_embeddings=self.switch("tie_word_embeddings"),
            qkv_bias=self.model_type == "qwen2" or attention_bias,
            output_bias=attention_bias,
            mlp_bias=self.model_type == "llama" and self.switch("mlp_bias"),
            qk_norm=self.model_type == "qwen3",
            bos_token_id=self.token_id("bos_token_id"),
            eos_token_ids=self.token_ids("eos_token_id"),
            pad_token_id=self.token_id("pad_token_id"),
            initializer_range=self.number(self.config, "initializer_range", 0.02),
            prompt=str(self.config.get(PROMPT_KEY) or ""),
        )

    def refuse_what_is_computed_differently(self) -> None:
        activation = self.config.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            raise self.fail(f"hidden_act {activation!r} is not supported; only silu is.")
        if (quantization := self.config.get("quantization_config")) is not None:
            method = quantization.get("quant_method") if isinstance(quantization, dict) else None
            raise self.fail(
                f"the weights are quantized (quantization_config: {method or quantization!r}). "
                "Use the unquantized checkpoint, or its GGUF file."
            )
        layer_types = self.config.get("layer_types")
        if layer_types is not None:
            unknown = sorted({str(kind) for kind in layer_types} - {"full_attention"})
            if unknown:
                raise self.fail(
                    f"layer_types contains {', '.join(unknown)}; only full_attention is supported."
                )
        elif (
            self.switch("use_sliding_window")
            and self.get("sliding_window") is not None
            and (self.get("max_window_layers") or 0) < self.integer("num_hidden_layers")
        ):
            raise self.fail(
                "sliding-window attention is switched on (use_sliding_window), which is not "
                "supported. Set it to false if prompt and answer stay within "
                f"{self.get('sliding_window')} tokens."
            )

    def rope(self) -> RopeConfig:
        """Either spelling: `rope_theta` + `rope_scaling`, or `rope_parameters` (transformers 5)."""
        values = self.config.get("rope_scaling") or self.config.get("rope_parameters") or {}
        if not isinstance(values, dict):
            raise self.fail(f"rope_scaling must be an object, found {values!r}.")
        if any(isinstance(value, dict) for value in values.values()):
            raise self.fail("rope_parameters per layer type are not supported.")
        theta = self.number(values, "rope_theta", self.number(self.config, "rope_theta", 10_000.0))
        partial = values.get("partial_rotary_factor", self.config.get("partial_rotary_factor"))
        if partial not in (None, 1, 1.0):
            raise self.fail(f"partial_rotary_factor {partial!r} is not supported; only 1.0 is.")
        kind = values.get("rope_type", values.get("type", "default"))
        if kind not in get_args(RopeType):
            raise self.fail(
                f"rope type {kind!r} is not supported; "
                f"supported are {', '.join(get_args(RopeType))}."
            )
        if kind == "default":
            return RopeConfig(theta=theta)
        if kind in ("linear", "dynamic"):
            return RopeConfig(theta=theta, type=kind, factor=self.number(values, "factor", None))
        trained = values.get("original_max_position_embeddings")
        if trained is None:
            trained = self.get("max_position_embeddings")
        if isinstance(trained, bool) or not isinstance(trained, int) or trained < 1:
            raise self.fail(
                f"original_max_position_embeddings must be a positive integer, found {trained!r}."
            )
        if kind == "llama3":
            return RopeConfig(
                theta=theta,
                type="llama3",
                factor=self.number(values, "factor", None),
                original_max_position=trained,
                low_freq_factor=self.number(values, "low_freq_factor", None),
                high_freq_factor=self.number(values, "high_freq_factor", None),
            )
        return RopeConfig(
            theta=theta,
            type="yarn",
            factor=self.number(values, "factor", self.integer("max_position_embeddings") / trained),
            original_max_position=trained,
            beta_fast=self.number(values, "beta_fast", 32.0) or 32.0,
            beta_slow=self.number(values, "beta_slow", 1.0) or 1.0,
            truncate=bool(values.get("truncate", True)),
            attention_factor=self.optional_number(values, "attention_factor"),
            mscale=self.optional_number(values, "mscale"),
            mscale_all_dim=self.optional_number(values, "mscale_all_dim"),
        )
