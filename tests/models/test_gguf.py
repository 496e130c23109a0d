"""GGUF files in: the same parameters and tokens as the Hugging Face checkpoint they came from."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from rmr1_jax.errors import UserError
from rmr1_jax.models.checkpoint import load_model
from rmr1_jax.models.gguf import PRE_TOKENIZERS, write_gguf_tokenizer
from rmr1_jax.models.huggingface import save_huggingface
from rmr1_jax.models.model_config import ModelConfig, RopeConfig
from rmr1_jax.models.rope import rope_frequencies
from rmr1_jax.models.weight_map import flatten, nest, tensors_of

Make = Callable[..., Path]
Q8_0 = GGMLQuantizationType.Q8_0
F32 = GGMLQuantizationType.F32


def write_gguf(
    file: Path,
    config: ModelConfig,
    params: dict[str, Any],
    *,
    kind: GGMLQuantizationType = F32,
    change: Callable[[GGUFWriter], None] = lambda writer: None,
) -> Path:
    """Writes a model as llama.cpp's converter does."""
    writer = GGUFWriter(file, config.model_type)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    change(writer)
    leaves = dict(flatten(params))
    for tensor in tensors_of(config):
        for layer in tensor.layers(config):
            values = np.asarray(leaves[tensor.path])
            values = values[layer] if tensor.stacked else values
            shape = tensor.foreign_shape(config)
            values = values.reshape(shape[::-1]).T if tensor.transposed else values.reshape(shape)
            if config.model_type == "llama" and ("query" in tensor.path or "key" in tensor.path):
                values = permute(values, config.head_dim)
            values = np.ascontiguousarray(values, np.float32)
            quantized = kind if values.ndim == 2 and values.shape[1] % 32 == 0 else F32
            data = gguf.quantize(values, quantized)
            writer.add_tensor(tensor.gguf.format(layer=layer), data, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def permute(values: np.ndarray, head_dim: int) -> np.ndarray:
    """Puts the two halves of each head's rows side by side, pair by pair."""
    heads = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
    return heads.swapaxes(1, 2).reshape(values.shape)


@pytest.mark.parametrize("family", ["llama", "llama, tied", "qwen2", "qwen3"])
def test_a_gguf_file_gives_the_weights_it_was_made_of(
    tiny_checkpoint: Make, tmp_path: Path, family: str
) -> None:
    config, params = load_model(tiny_checkpoint(family))
    read_config, read = load_model(write_gguf(tmp_path / "model.gguf", config, params))
    assert read_config == config
    assert [path for path, _ in flatten(read)] == [path for path, _ in flatten(params)]
    for (path, ours), (_, theirs) in zip(flatten(read), flatten(params), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=path)


def test_quantized_weights_are_as_close_as_their_type_allows(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    config, params = load_model(tiny_checkpoint("llama, tied"))
    file = write_gguf(tmp_path / "model.gguf", config, params, kind=Q8_0)
    ours, theirs = (p["embed"]["embedding"] for p in (load_model(file)[1], params))
    step = np.abs(theirs).max(axis=1, keepdims=True) / 127  # one block a row, its scale in fp16
    assert np.all(np.abs(ours - theirs) <= 0.6 * step)
    assert np.any(ours != theirs)


@pytest.mark.nightly
def test_a_real_quantized_model_equals_what_transformers_reads(
    smollm_gguf: Path, tmp_path: Path
) -> None:
    config, params = load_model(smollm_gguf)
    save_huggingface(params, config, tmp_path)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(
        smollm_gguf.parent, gguf_file=smollm_gguf.name
    ).state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name].numpy(), value.numpy(), err_msg=name)


@pytest.mark.devices8
def test_weights_arrive_sharded_and_in_the_dtype_asked_for(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    config, params = load_model(tiny_checkpoint("llama"), dtype="bfloat16")
    file = write_gguf(tmp_path / "model.gguf", config, params)
    mesh = jax.make_mesh((2, 4), ("tensor", "fsdp"))
    axes = {"D": "fsdp", "N": "tensor", "K": "tensor", "F": "tensor"}
    shardings = nest(
        {
            tensor.path: jax.NamedSharding(
                mesh,
                jax.P(*map(axes.get, ("L" if tensor.stacked else "") + "".join(tensor.axes))),
            )
            for tensor in tensors_of(config)
        }
    )
    _, read = load_model(file, dtype="bfloat16", shardings=shardings)
    for (path, ours), (_, theirs) in zip(flatten(read), flatten(params), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, err_msg=path)


def test_llama3_scaling_is_found_in_the_frequencies_that_stand_for_it(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    config, params = load_model(tiny_checkpoint("llama, tied"))
    rope = RopeConfig(config.rope.theta, "llama3", 32.0, 8192, 1.0, 4.0)
    scaled, plain = (rope_frequencies(c)[0] for c in (replace(config, rope=rope), config))

    def add(divisors: np.ndarray) -> Callable[[GGUFWriter], None]:
        return lambda writer: writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))

    file = write_gguf(tmp_path / "a.gguf", config, params, change=add(plain / scaled))
    assert load_model(file)[0].rope == rope
    file = write_gguf(tmp_path / "b.gguf", config, params, change=add(np.linspace(1, 9, 6)))
    with pytest.raises(UserError, match=r"none of Llama 3\.1 to 3\.3"):
        load_model(file)


def test_other_rope_scalings_are_read_from_the_metadata(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    config, params = load_model(tiny_checkpoint("qwen2"))

    def add(writer: GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(16)

    file = write_gguf(tmp_path / "yarn.gguf", config, params, change=add)
    assert load_model(file)[0].rope == RopeConfig(config.rope.theta, "yarn", 4.0, 16)


def error_of(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(file)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    return message


def test_files_that_cannot_be_read_say_why(tiny_checkpoint: Make, tmp_path: Path) -> None:
    config, params = load_model(tiny_checkpoint("qwen2"))
    file = write_gguf(tmp_path / "model.gguf", config, params)
    content = file.read_bytes()
    assert "does not exist" in error_of(tmp_path / "nowhere.gguf")
    for name, damaged in {
        "empty": b"",
        "page": b"<!DOCTYPE html>" * 100,
        "header": content[:200],
        "tensors": content[:-3000],
    }.items():
        (tmp_path / f"{name}.gguf").write_bytes(damaged)
        assert "truncated or corrupt" in error_of(tmp_path / f"{name}.gguf")
    other = GGUFWriter(tmp_path / "other.gguf", "mamba")
    other.write_header_to_file()
    other.write_kv_data_to_file()
    other.write_tensors_to_file()
    other.close()
    assert "architecture 'mamba' is not supported" in error_of(tmp_path / "other.gguf")
    experts = write_gguf(
        tmp_path / "moe.gguf", config, params, change=lambda writer: writer.add_expert_count(4)
    )
    assert "mixture of experts" in error_of(experts)
    part = write_gguf(
        tmp_path / "part.gguf", config, params, change=lambda w: w.add_uint16("split.count", 2)
    )
    assert "one part of a split GGUF" in error_of(part)


def test_missing_extra_and_misshapen_tensors_are_all_reported_together(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    config, params = load_model(tiny_checkpoint("qwen2"))

    def change(writer: GGUFWriter) -> None:
        writer.add_tensor("extra.weight", np.ones(3, np.float32))
        writer.add_uint32("qwen2.block_count", 4)
        writer.add_uint32("qwen2.feed_forward_length", 47)

    message = error_of(write_gguf(tmp_path / "model.gguf", config, params, change=change))
    assert "12 missing: " in message
    assert "blk.3.attn_q.weight" in message
    assert "1 extra: extra.weight" in message
    assert "9 misshapen: blk.0.ffn_gate.weight [48, 32] instead of [47, 32]" in message


def tokenizer_of(file: Path, directory: Path) -> Any:
    directory.mkdir()
    write_gguf_tokenizer(file, directory)
    return AutoTokenizer.from_pretrained(directory)


def vectors(shared_data: Path) -> list[tuple[str, list[int]]]:
    folder = shared_data / "tokenizers" / "vectors"
    texts = (folder / "ggml-vocab-qwen2.gguf.inp").read_text().split("\n__ggml_vocab_test__\n")
    lines = (folder / "ggml-vocab-qwen2.gguf.out").read_text().split("\n")
    return [(text, [int(i) for i in ids.split()]) for text, ids in zip(texts, lines, strict=True)]


CHAT = [
    {"role": "system", "content": "You judge two answers."},
    {"role": "user", "content": "Which is better?\n\n[A] It's 12345 naïve, résumé.\n[B] 你好 🦙"},
]


def prompt_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return list(prompt["input_ids"])


@pytest.mark.slow
def test_smollm_tokens_are_those_of_transformers_and_of_llama_cpp(
    smollm_gguf: Path, shared_data: Path, tmp_path: Path
) -> None:
    ours = tokenizer_of(smollm_gguf, tmp_path / "tokenizer")
    theirs = AutoTokenizer.from_pretrained(smollm_gguf.parent, gguf_file=smollm_gguf.name)
    assert ours.chat_template == theirs.chat_template
    for messages in (CHAT, CHAT[1:]):
        assert prompt_ids(ours, messages) == prompt_ids(theirs, messages)
    for text, _ in vectors(shared_data):
        assert ours.decode(ours.encode(text)) == text
        if "½" not in text:  # transformers does not cut it off as a digit, SmolLM2 and llama.cpp do
            assert ours.encode(text) == theirs.encode(text)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    golden = json.loads(
        (shared_data / "golden" / "smollm2-135m-llamacpp-logprobs.json").read_text()
    )
    for answer in golden:
        pieces = [piece for piece, *_ in answer["lp"] if piece]
        assert [ours.decode([i]) for i in ours.encode("".join(pieces))] == pieces


def test_qwen_tokens_are_those_of_the_published_tokenizer(
    qwen_gguf: Path, shared_data: Path, tmp_path: Path
) -> None:
    ours = tokenizer_of(qwen_gguf, tmp_path / "tokenizer")
    theirs = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "qwen2.5")
    for text, ids in vectors(shared_data):
        assert ours.encode(text) == ids
    assert len(ours) == len(theirs)
    assert (ours.eos_token, ours.pad_token) == (theirs.eos_token, theirs.pad_token)
    for messages in (CHAT, CHAT[1:]):
        assert prompt_ids(ours, messages) == prompt_ids(theirs, messages)


@pytest.mark.parametrize(
    ("pre", "published"), [("qwen2", "qwen2.5"), ("deepseek-r1-qwen", "r1-distill-qwen")]
)
def test_text_is_cut_as_the_published_tokenizer_cuts_it(
    shared_data: Path, pre: str, published: str
) -> None:
    file = shared_data / "tokenizers" / published / "tokenizer.json"
    theirs = Tokenizer.from_file(str(file)).pre_tokenizer
    ours = PRE_TOKENIZERS[pre]()
    for text, _ in vectors(shared_data):
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def write_tokenizer(file: Path, pre: str | None, **metadata: Any) -> Path:
    """A byte-level vocabulary, a few merges, a control, a user's and an unused token."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, "in", "ing", "12", "123", "1234", "<|end|>", "<think>", "[PAD]"]
    kinds = [TokenType.NORMAL] * (len(alphabet) + 5)
    kinds += [TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED]
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_tokenizer_model(metadata.get("model", "gpt2"))
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["i n", "in g", "1 2", "12 3"])
    writer.add_bos_token_id(tokens.index("<|end|>"))
    writer.add_eos_token_id(tokens.index("<|end|>"))
    if "add_bos" in metadata:
        writer.add_add_bos_token(metadata["add_bos"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


CUTS = {
    "gpt-2": ["123", "4", "5"],
    "default": ["123", "4", "5"],
    "smollm": ["1", "2", "3", "4", "5"],
    "qwen2": ["1", "2", "3", "4", "5"],
    "llama-bpe": ["<|end|>", "123", "4", "5"],
}


@pytest.mark.parametrize("pre", CUTS)
def test_digits_are_cut_as_the_pre_tokenizer_says(tmp_path: Path, pre: str) -> None:
    tokenizer = tokenizer_of(write_tokenizer(tmp_path / "model.gguf", pre), tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("12345")) == CUTS[pre]


def test_llama_takes_whole_words_of_the_vocabulary_before_it_merges(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(write_tokenizer(tmp_path / "a.gguf", "llama-bpe"), tmp_path / "a")
    assert tokenizer.tokenize("ing in") == ["ing", "Ġ", "in"]
    assert tokenizer.model_max_length == 64


def test_special_tokens_keep_their_kind_and_unused_ones_are_left_out(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(write_tokenizer(tmp_path / "model.gguf", "gpt-2"), tmp_path / "out")
    ids = tokenizer.encode("<think>in<|end|>")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<think>", "in", "<|end|>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>in"
    assert tokenizer.convert_tokens_to_ids("[PAD]") is None
    assert tokenizer.eos_token == "<|end|>"


@pytest.mark.parametrize("adds", [True, False])
def test_whether_a_text_starts_with_the_begin_token_is_read_from_the_file(
    tmp_path: Path, adds: bool
) -> None:
    file = write_tokenizer(tmp_path / "model.gguf", "llama-bpe", add_bos=adds)
    tokenizer = tokenizer_of(file, tmp_path / "out")
    first = tokenizer.convert_ids_to_tokens(tokenizer.encode("in"))[0]
    assert (first == "<|end|>") is adds
    assert tokenizer.tokenize("in") == ["in"]


def test_unknown_tokenizers_are_refused_by_name(tmp_path: Path) -> None:
    for name, file in {
        "'tekken'": write_tokenizer(tmp_path / "a.gguf", "tekken"),
        "None": write_tokenizer(tmp_path / "b.gguf", None),
        "'llama'": write_tokenizer(tmp_path / "c.gguf", "default", model="llama"),
    }.items():
        with pytest.raises(UserError, match=f"{name} is not supported"):
            write_gguf_tokenizer(file, tmp_path)
