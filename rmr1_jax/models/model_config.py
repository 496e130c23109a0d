"""The dimensions and switches of a decoder, read from a Hugging Face `config.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rmr1_jax.errors import UserError

RopeType = Literal["default", "linear", "dynamic", "yarn", "llama3"]

# model_type -> its architecture in transformers.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

# The defaults of the transformers config classes for keys that config.json leaves out.
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

# The key in config.json for the prompt that an exported judge was trained with.
PROMPT_KEY = "rmr1_prompt"


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding. Each type uses some of the fields after `type`."""

    theta: float = 10_000.0
    type: RopeType = "default"
    factor: float = 1.0
    original_max_position: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions and switches of one decoder (Qwen2/2.5, Qwen3, Llama 3.x)."""

    model_type: str
    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    max_position: int
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    initializer_range: float = 0.02
    prompt: str = ""  # the judge prompt of the model; "" if config.json names none

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, source: str) -> "ModelConfig":
        """The model that a Hugging Face `config.json` describes.

        Missing keys have the defaults of the `transformers` config class of that type. `source`
        names the file in messages. Raises `UserError` for everything that this decoder would
        compute differently.
        """
        return _ConfigReader(config, source).model()

    def to_hf(self, *, dtype: str | None = None) -> dict[str, Any]:
        """A `config.json` for transformers and vLLM; `dtype` is the dtype of the stored weights."""
        rope = _rope_to_hf(self.rope)
        eos = self.eos_token_ids
        config: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_embeddings,
            "attention_dropout": 0.0,
            "initializer_range": self.initializer_range,
            "use_cache": True,
            # Both spellings: transformers 5 reads rope_parameters, older readers the other two, and
            # a reader that finds neither of those it knows falls back to theta 10,000 silently.
            "rope_parameters": rope,
            "rope_theta": self.rope.theta,
            "rope_scaling": None
            if self.rope.type == "default"
            else {key: value for key, value in rope.items() if key != "rope_theta"},
            "bos_token_id": self.bos_token_id,
            "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else list(eos),
            "pad_token_id": self.pad_token_id,
        }
        if self.model_type == "llama":
            config |= {"attention_bias": self.qkv_bias, "mlp_bias": self.mlp_bias}
        else:
            config |= {"use_sliding_window": False, "sliding_window": None}
        if self.model_type == "qwen3":
            config["attention_bias"] = self.qkv_bias
        if dtype is not None:
            config |= {"dtype": dtype, "torch_dtype": dtype}
        if self.prompt:
            config[PROMPT_KEY] = self.prompt
        return config


def load_hf_config(directory: str | Path) -> dict[str, Any]:
    """The contents of the `config.json` of a checkpoint directory."""
    directory = Path(directory)
    if not directory.is_dir():
        what = "is a file, not a directory" if directory.exists() else "does not exist"
        raise UserError(
            f"{directory} {what}. Name the directory of a Hugging Face checkpoint "
            "(config.json beside *.safetensors)."
        )
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(
            f"{directory} is no checkpoint: it holds no config.json. Name the directory that holds "
            "config.json and the weights."
        )
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Anything else is a `UserError` that says where it breaks."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). Download or export it again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, not an object.")
    return content


def _rope_to_hf(rope: RopeConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"rope_type": rope.type, "rope_theta": rope.theta}
    if rope.type == "default":
        return values
    values["factor"] = rope.factor
    if rope.type in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = rope.original_max_position
    if rope.type == "llama3":
        values |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
        }
    if rope.type == "yarn":
        values |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        if not rope.truncate:
            values["truncate"] = False
        for key in ("attention_factor", "mscale", "mscale_all_dim"):
            if getattr(rope, key) is not None:
                values[key] = getattr(rope, key)
    return values


class _ConfigReader:
    """Looks up and checks the keys of one config.json, and names the file in errors."""

    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        self.config, self.source = config, source
        supported = ", ".join(ARCHITECTURES)
        self.model_type = str(config.get("model_type"))
        if config.get("model_type") is None:
            raise UserError(
                f"{source} has no model_type. Add the model_type of the architecture; "
                f"supported are {supported}."
            )
        if self.model_type not in ARCHITECTURES:
            raise self.fail(
                f"model_type {self.model_type!r} is not supported; supported are {supported}."
            )
        expected = ARCHITECTURES[self.model_type]
        names = config.get("architectures")
        if names and expected not in names:
            raise self.fail(
                f"architecture {', '.join(map(str, names))} is not supported; "
                f"supported are {', '.join(ARCHITECTURES.values())} "
                f"(a model of type {self.model_type} must be {expected})."
            )

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
        """From `rope_theta` and `rope_scaling`, or from `rope_parameters` (transformers 5)."""
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
