"""GGUF files (llama.cpp): config, tokenizer, and weights dequantized to the same parameters."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, TokenType, dequantize
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE

from rmr1_jax.errors import UserError
from rmr1_jax.models.huggingface import write_json
from rmr1_jax.models.model_config import ARCHITECTURES, ModelConfig
from rmr1_jax.models.rope import rope_frequencies
from rmr1_jax.models.weight_map import Tensor, check_shapes, foreign_shapes

# The frequency divisors that llama.cpp stores instead of the numbers of `llama3` rope scaling.
ROPE_DIVISORS = "rope_freqs.weight"


class GgufSource:
    """The weights of a GGUF file, dequantized to fp32, for `assemble`.

    Raises one `UserError` that lists all missing, extra and misshapen tensors if the file does not
    fit its metadata, or a `UserError` if the `gguf` package cannot read its quantization.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, file: Path) -> None:
        self.stored = {tensor.name: tensor for tensor in open_gguf(file).tensors}
        self.config = gguf_config(file)
        check_shapes(
            f"the weights in {file} do not fit its metadata",
            foreign_shapes(self.config, "gguf"),
            {name: _shape(t) for name, t in self.stored.items() if name != ROPE_DIVISORS},
        )
        _refuse_unreadable(file, self.stored.values())
        _open.cache_clear()  # the parsed vocabulary is large, and the weights are read last

    def read(self, tensor: Tensor, layer: int, window: tuple[slice, ...]) -> np.ndarray:
        stored = self.stored[tensor.gguf.format(layer=layer)]
        rows, *columns = window
        values = dequantize(np.asarray(stored.data[rows]), stored.tensor_type)
        if self.config.model_type == "llama" and tensor.path.startswith(
            ("layers/attention/query/", "layers/attention/key/")
        ):
            values = _unpermute(values, self.config.head_dim)
        return values[(slice(None), *columns)]


def open_gguf(file: str | Path) -> GGUFReader:
    """A GGUF file, mapped, with its metadata parsed (seconds, if the vocabulary is large)."""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{file} does not exist. Name a GGUF file.")
    return _open(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _open(path: Path, modified: int) -> GGUFReader:
    try:
        return GGUFReader(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no GGUF file, or is truncated or corrupt ({error}). Download it again."
        ) from error


def metadata(reader: GGUFReader, key: str, default: Any = None) -> Any:
    """A metadata value, or `default` if the file has none."""
    field = reader.get_field(key)
    return default if field is None else field.contents()


def gguf_config(file: str | Path) -> ModelConfig:
    """The config that the metadata of a GGUF file describes."""
    reader = open_gguf(file)
    architecture = metadata(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{file}: GGUF architecture {architecture!r} is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}."
        )
    if metadata(reader, "split.count", 1) > 1:
        raise UserError(
            f"{file} is one part of a split GGUF file. Join them with llama-gguf-split --merge."
        )

    def value(key: str, default: Any = None) -> Any:
        return metadata(reader, f"{architecture}.{key}", default)

    if value("expert_count", 0):
        raise UserError(f"{file} is a mixture of experts, which is not supported.")
    shapes = {tensor.name: _shape(tensor) for tensor in reader.tensors}
    heads = value("attention.head_count")
    hidden = value("embedding_length")
    if not isinstance(heads, int) or not isinstance(hidden, int) or not heads:
        raise UserError(f"{file}: head_count or embedding_length is missing. Download it again.")
    head_dim = value("attention.key_length", hidden // heads)
    if value("rope.dimension_count", head_dim) != head_dim:
        raise UserError(f"{file} rotates part of each head only, which is not supported.")
    context = value("context_length")
    window = value("attention.sliding_window", 0)
    if window and context and window < context:
        raise UserError(f"{file} uses sliding-window attention, which is not supported.")
    eos = [metadata(reader, f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    described = {
        "model_type": architecture,
        "vocab_size": shapes.get("token_embd.weight", (None,))[0],
        "hidden_size": hidden,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": _decimal(value("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": architecture != "qwen2" and "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_gate.bias" in shapes,
        "rope_theta": _decimal(value("rope.freq_base", 10_000.0)),
        "rope_scaling": _rope_scaling(value),
        "bos_token_id": metadata(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": list(dict.fromkeys(token for token in eos if token is not None)),
        "pad_token_id": metadata(reader, "tokenizer.ggml.padding_token_id"),
    }
    divisors = next((t.data for t in reader.tensors if t.name == ROPE_DIVISORS), None)
    if divisors is not None:
        described["rope_scaling"] = _llama3_scaling(divisors, described, str(file))
    return ModelConfig.from_hf(described, source=str(file))


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))  # ggml counts from the inside out


def _decimal(value: float | None) -> float | None:
    # Metadata is fp32: 1e-05 reads as 9.999999747378752e-06, which config.json should not show.
    return None if value is None else float(str(np.float32(value)))


def _rope_scaling(value: Callable[..., Any]) -> dict[str, Any] | None:
    kind = value("rope.scaling.type", "none")
    if kind == "none":
        return None
    optional = {
        "original_max_position_embeddings": value("rope.scaling.original_context_length"),
        "attention_factor": _decimal(value("rope.scaling.attn_factor")),
    }
    found = {key: number for key, number in optional.items() if number is not None}
    return {"rope_type": kind, "factor": _decimal(value("rope.scaling.factor")), **found}


def _llama3_scaling(
    divisors: np.ndarray, described: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """The `llama3` scaling that matches the divisors, since the file does not name it."""
    scaling = {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain, scaled = (
        rope_frequencies(ModelConfig.from_hf({**described, "rope_scaling": s}, source=source))[0]
        for s in (None, scaling)
    )
    if not np.allclose(plain / divisors, scaled, rtol=1e-4, atol=0):
        raise UserError(
            f"{source}: the rope frequencies in {ROPE_DIVISORS} are none of Llama 3.1 to 3.3, and "
            "no others are supported. Use the Hugging Face checkpoint of this model."
        )
    return scaling


def _refuse_unreadable(file: Path, tensors: Iterable[ReaderTensor]) -> None:
    kinds: dict[GGMLQuantizationType, ReaderTensor] = {t.tensor_type: t for t in tensors}
    unreadable = []
    for kind, tensor in kinds.items():
        try:
            dequantize(tensor.data[:1], kind)
        except NotImplementedError:
            unreadable.append(kind.name)
    if unreadable:
        raise UserError(
            f"{file}: quantization type {', '.join(unreadable)} cannot be read. Use another "
            "quantization of this model, for example Q8_0."
        )


def _unpermute(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Undo the row order of llama-architecture files, in which rotated pairs are adjacent.

    `rows` are whole heads. We keep the halves of a head apart, as Hugging Face does.
    """
    heads = rows.reshape(-1, head_dim // 2, 2, math.prod(rows.shape[1:]))
    return heads.swapaxes(1, 2).reshape(rows.shape)


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SINGLE_DIGITS = _WORDS + r"\p{N}" + _REST
_THREE_DIGITS = _WORDS + r"\p{N}{1,3}" + _REST


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


# The values of `tokenizer.ggml.pre`, and how such a tokenizer splits text before merging.
PRE_TOKENIZERS = {
    "default": _gpt2,  # what a converter writes for a tokenizer it does not know
    "gpt-2": _gpt2,
    "smollm": _smollm,
    "qwen2": lambda: _split(_SINGLE_DIGITS),
    "deepseek-r1-qwen": lambda: _split(_SINGLE_DIGITS),
    "llama-bpe": lambda: _split(_THREE_DIGITS),
    "llama3": lambda: _split(_THREE_DIGITS),
    "llama-v3": lambda: _split(_THREE_DIGITS),
}
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")


def write_gguf_tokenizer(file: str | Path, directory: str | Path) -> None:
    """Write the tokenizer files that `transformers.AutoTokenizer` reads, with the chat template.

    Raises `UserError` for tokenizers other than byte-level BPE and for unknown pre-tokenizers.
    """
    reader = open_gguf(file)
    directory = Path(directory)
    tokenizer = _tokenizer(reader, str(file))
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", _tokenizer_config(reader))


def _tokenizer(reader: GGUFReader, source: str) -> Tokenizer:
    model = metadata(reader, "tokenizer.ggml.model")
    if model != "gpt2":
        raise UserError(
            f"{source}: tokenizer model {model!r} is not supported; only byte-level BPE (gpt2) is. "
            "Name a Hugging Face directory with this model's tokenizer."
        )
    pre = metadata(reader, "tokenizer.ggml.pre")
    if pre not in PRE_TOKENIZERS:
        raise UserError(
            f"{source}: pre-tokenizer {pre!r} is not supported; supported are "
            f"{', '.join(PRE_TOKENIZERS)}. Name a Hugging Face directory with the tokenizer."
        )
    tokens = metadata(reader, "tokenizer.ggml.tokens")
    kinds = metadata(reader, "tokenizer.ggml.token_type", [TokenType.NORMAL] * len(tokens))
    # Unused tokens only pad the vocabulary to the size of the embedding.
    vocabulary = {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != TokenType.UNUSED
    }
    merges = [tuple(merge.split(" ")) for merge in metadata(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=pre in _LLAMA3))
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == TokenType.CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
        ]
    )
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    begin = metadata(reader, "tokenizer.ggml.bos_token_id")
    if _adds_begin(reader) and begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[begin]} $A",
            pair=f"{tokens[begin]} $A {tokens[begin]}:1 $B:1",
            special_tokens=[(tokens[begin], begin)],
        )
    return tokenizer


def _adds_begin(reader: GGUFReader) -> bool:
    llama3 = metadata(reader, "tokenizer.ggml.pre") in _LLAMA3
    return bool(metadata(reader, "tokenizer.ggml.add_bos_token", llama3))


def _tokenizer_config(reader: GGUFReader) -> dict[str, Any]:
    tokens = metadata(reader, "tokenizer.ggml.tokens")
    architecture = metadata(reader, "general.architecture")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": _adds_begin(reader),
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata(reader, f"{architecture}.context_length"),
    }
    for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token = metadata(reader, f"tokenizer.ggml.{name}_token_id")
        if token is not None:
            config[f"{key}_token"] = tokens[token]
    template = metadata(reader, "tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return config
