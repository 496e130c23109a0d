"""What a decoder looks like: `ModelConfig`, read from a Hugging Face `config.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rmr1_jax.errors import UserError

RopeType = Literal["default", "linear", "dynamic", "yarn", "llama3"]

# model_type -> the architecture `transformers` names for it.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

# The key under which an exported judge remembers the prompt it was trained with.
PROMPT_KEY = "rmr1_prompt"


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding. Fields after `type` only matter to the types that name them."""

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
    prompt: str = ""  # the judge prompt the model was trained with, "" where config.json names none

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, source: str) -> "ModelConfig":
        """The model that a Hugging Face `config.json` describes.

        Keys left out mean what the `transformers` config class of that type assumes. `source` names
        the file in messages. Raises `UserError` for all that this decoder would compute otherwise.
        """
        from rmr1_jax.models.config_reader import ConfigReader  # which builds this class

        return ConfigReader(config, source).model()

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
    """The `config.json` of a checkpoint directory, as it stands."""
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
    """The JSON object in a file; anything else is a `UserError` that says where it breaks."""
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
