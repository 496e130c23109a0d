"""The tokenizer of a GGUF file, written as the files that `transformers.AutoTokenizer` reads."""

from pathlib import Path
from typing import Any

from gguf import GGUFReader, TokenType
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
from rmr1_jax.models.gguf import metadata, open_gguf
from rmr1_jax.models.huggingface import write_json

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


# What `tokenizer.ggml.pre` may say, and how such a tokenizer cuts text before merging.
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
    """Writes tokenizer.json and tokenizer_config.json, with the chat template of the GGUF file.

    Byte-level BPE only. Other models and unknown pre-tokenizers are a `UserError` that names them.
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
    # Unused tokens only fill the vocabulary up to the rows of the embedding.
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
