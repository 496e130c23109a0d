"""config.json in and out: the defaults of transformers, both rope spellings, refusals by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from rmr1_jax.errors import UserError
from rmr1_jax.models.model_config import ARCHITECTURES, ModelConfig, RopeConfig, load_hf_config

LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(**config: Any) -> ModelConfig:
    return ModelConfig.from_hf({"model_type": "llama", **config}, source="config.json")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_what_is_left_out_means_what_transformers_assumes(model_type: str) -> None:
    ours = ModelConfig.from_hf({"model_type": model_type}, source="config.json")
    theirs = AutoConfig.for_model(model_type)
    eos = theirs.eos_token_id
    assert ours == ModelConfig(
        model_type=model_type,
        vocab_size=theirs.vocab_size,
        hidden_size=theirs.hidden_size,
        intermediate_size=theirs.intermediate_size,
        num_layers=theirs.num_hidden_layers,
        num_heads=theirs.num_attention_heads,
        num_kv_heads=theirs.num_key_value_heads,
        head_dim=128,
        max_position=theirs.max_position_embeddings,
        rms_norm_eps=theirs.rms_norm_eps,
        rope=RopeConfig(theta=theirs.rope_parameters["rope_theta"]),
        tie_embeddings=theirs.tie_word_embeddings,
        qkv_bias=model_type == "qwen2",
        qk_norm=model_type == "qwen3",
        bos_token_id=theirs.bos_token_id,
        eos_token_ids=() if eos is None else (eos,),
        initializer_range=theirs.initializer_range,
    )


def test_head_dim_is_computed_where_it_is_absent_or_null() -> None:
    assert read(hidden_size=96, num_attention_heads=3).head_dim == 32
    assert read(hidden_size=96, num_attention_heads=3, head_dim=None).head_dim == 32
    assert read(hidden_size=96, num_attention_heads=3, head_dim=48).head_dim == 48
    qwen2 = {"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 2}
    assert ModelConfig.from_hf(qwen2 | {"num_key_value_heads": 1}, source="").head_dim == 32


def test_key_value_heads_null_means_one_for_each_query_head() -> None:
    assert read(num_attention_heads=8, num_key_value_heads=None).num_kv_heads == 8


def test_attention_bias_is_a_switch_of_llama_and_qwen3_only() -> None:
    biased = read(attention_bias=True, mlp_bias=True)
    assert (biased.qkv_bias, biased.output_bias, biased.mlp_bias) == (True, True, True)
    qwen2 = ModelConfig.from_hf({"model_type": "qwen2", "attention_bias": False}, source="")
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.mlp_bias) == (True, False, False)
    qwen3 = ModelConfig.from_hf({"model_type": "qwen3", "attention_bias": True}, source="")
    assert (qwen3.qkv_bias, qwen3.output_bias, qwen3.mlp_bias) == (True, True, False)


def test_both_spellings_of_rope_mean_the_same() -> None:
    old = read(rope_theta=500_000.0, rope_scaling={"type": "llama3", **LLAMA3})
    new = read(rope_parameters={"rope_type": "llama3", "rope_theta": 500_000.0, **LLAMA3})
    assert old.rope == new.rope == RopeConfig(500_000.0, "llama3", 32.0, 8192)
    assert read(rope_theta=1e6, rope_scaling=None).rope == RopeConfig(1e6)
    assert read(rope_parameters={"rope_type": "default", "rope_theta": 1e6}).rope == RopeConfig(1e6)


def test_yarn_takes_what_it_lacks_from_the_lengths() -> None:
    scaling = {"rope_type": "yarn", "original_max_position_embeddings": 1024}
    assert read(max_position_embeddings=4096, rope_scaling=scaling).rope.factor == 4.0
    scaling = {"rope_type": "yarn", "factor": 2.0}
    assert (
        read(max_position_embeddings=4096, rope_scaling=scaling).rope.original_max_position == 4096
    )


def test_stop_tokens_may_be_one_or_several() -> None:
    assert read(eos_token_id=7).eos_token_ids == (7,)
    assert read(eos_token_id=[7, 9]).eos_token_ids == (7, 9)
    assert read(eos_token_id=None).eos_token_ids == ()


ROPES = {
    "default": RopeConfig(1e6),
    "linear": RopeConfig(1e4, "linear", 2.0),
    "dynamic": RopeConfig(1e4, "dynamic", 2.0),
    "llama3": RopeConfig(5e5, "llama3", 8.0, 8192, 1.0, 4.0),
    "yarn": RopeConfig(1e6, "yarn", 4.0, 512),
    "yarn, all": RopeConfig(
        1e6, "yarn", 4.0, 512, beta_fast=20.0, mscale=0.5, mscale_all_dim=0.7, truncate=False
    ),
    "yarn, attention factor": RopeConfig(1e6, "yarn", 4.0, 512, attention_factor=1.2),
}


@pytest.mark.parametrize("spelling", ["both", "old", "new"])
@pytest.mark.parametrize("kind", ROPES)
def test_what_is_written_reads_back_the_same_in_either_rope_spelling(
    kind: str, spelling: str
) -> None:
    config = replace(read(max_position_embeddings=2048), rope=ROPES[kind])
    written = config.to_hf()
    for key in {"old": ["rope_parameters"], "new": ["rope_theta", "rope_scaling"]}.get(
        spelling, []
    ):
        del written[key]
    assert ModelConfig.from_hf(written, source="") == config


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("kind", ROPES)
def test_transformers_reads_what_is_written(
    model_type: str, kind: str, recwarn: pytest.WarningsRecorder
) -> None:
    config = ModelConfig.from_hf(
        {
            "model_type": model_type,
            "head_dim": 96,
            "num_key_value_heads": 2,
            "eos_token_id": [3, 4],
            "tie_word_embeddings": True,
            "attention_bias": True,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
        },
        source="",
    )
    config = replace(config, rope=ROPES[kind])
    theirs = AutoConfig.for_model(**config.to_hf(dtype="bfloat16"))
    assert theirs.architectures == [ARCHITECTURES[model_type]]
    assert str(theirs.dtype) == "torch.bfloat16"
    assert ModelConfig.from_hf(theirs.to_dict(), source="") == config
    assert not recwarn.list


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no model type": ({"model_type": None}, ["model_type", "llama, qwen2, qwen3"]),
    "other type": ({"model_type": "gemma3"}, ["gemma3", "llama, qwen2, qwen3"]),
    "other head": (
        {"architectures": ["LlamaForSequenceClassification"]},
        ["LlamaForSequenceClassification", "LlamaForCausalLM"],
    ),
    "longrope": ({"rope_scaling": {"type": "longrope"}}, ["longrope", "yarn"]),
    "rope per layer": ({"rope_parameters": {"full_attention": {}}}, ["per layer type"]),
    "no factor": ({"rope_scaling": {"type": "linear"}}, ["factor is missing"]),
    "no low factor": ({"rope_scaling": {"type": "llama3", "factor": 8}}, ["low_freq_factor"]),
    "part of a head": ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor 0.5"]),
    "activation": ({"hidden_act": "gelu"}, ["gelu", "silu"]),
    "quantized": ({"quantization_config": {"quant_method": "awq"}}, ["quantized", "awq"]),
    "sliding": ({"use_sliding_window": True, "sliding_window": 64}, ["sliding-window"]),
    "sliding layers": (
        {"layer_types": ["full_attention", "sliding_attention"]},
        ["sliding_attention", "full_attention"],
    ),
    "text for a number": ({"hidden_size": "big"}, ["hidden_size", "'big'"]),
    "no layers": ({"num_hidden_layers": 0}, ["num_hidden_layers"]),
    "text for a switch": ({"tie_word_embeddings": "no"}, ["tie_word_embeddings"]),
    "uneven groups": (
        {"num_attention_heads": 8, "num_key_value_heads": 3},
        ["num_attention_heads 8", "num_key_value_heads 3"],
    ),
    "odd heads": ({"head_dim": 7}, ["head_dim 7"]),
    "no head_dim": ({"hidden_size": 100, "num_attention_heads": 3}, ["hidden_size 100"]),
    "text for a token": ({"eos_token_id": "</s>"}, ["eos_token_id", "</s>"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(case: str) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(UserError) as caught:
        read(**changes)
    message = str(caught.value)
    assert message.startswith("config.json")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_sliding_window_that_is_off_or_reaches_no_layer_is_accepted() -> None:
    read(use_sliding_window=False, sliding_window=4096)
    read(use_sliding_window=True, sliding_window=None)
    read(use_sliding_window=True, sliding_window=64, num_hidden_layers=4, max_window_layers=4)
    read(layer_types=["full_attention"] * 32)


def test_the_prompt_a_judge_was_trained_with_is_kept() -> None:
    config = read(rmr1_prompt="reasoning")
    assert config.prompt == "reasoning"
    assert ModelConfig.from_hf(config.to_hf(), source="") == config


def test_a_directory_without_a_readable_config_says_why(tmp_path: Path) -> None:
    def error(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            load_hf_config(path)
        return str(caught.value)

    assert "does not exist" in error(tmp_path / "nowhere")
    assert "no config.json" in error(tmp_path)
    file = tmp_path / "config.json"
    file.write_text('{"model_type": ')
    assert "not valid JSON" in error(tmp_path)
    assert "not a directory" in error(file)
    file.write_bytes(b"\xff\xfe")
    assert "not valid JSON" in error(tmp_path)
    file.write_text("[]")
    assert "JSON list" in error(tmp_path)
