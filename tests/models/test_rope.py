"""Rotary frequencies equal those of transformers, up to the last bits of fp32."""

import itertools
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rmr1_jax.errors import UserError
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.rope import rope_frequencies

LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama 3.1": {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 8192},
    "llama 3.2": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
    "yarn, all": {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 20.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
    "yarn, attention factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32_768,
        "attention_factor": 1.3,
    },
}


def description(scaling: dict[str, Any], theta: float = 5e5, head_dim: int = 64) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "head_dim": head_dim,
        "max_position_embeddings": 131_072,
        "rope_parameters": {**scaling, "rope_theta": theta},
    }


@pytest.mark.parametrize("kind", SCALINGS)
def test_frequencies_equal_those_of_transformers(kind: str) -> None:
    for theta, head_dim in itertools.product([1e4, 5e5, 1e6], [64, 80, 128]):
        described = description(SCALINGS[kind], theta, head_dim)
        theirs = LlamaRotaryEmbedding(LlamaConfig.from_dict(described))
        ours, scaling = rope_frequencies(ModelConfig.from_hf(described, source=""))
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs.inv_freq.numpy(), rtol=2e-6, atol=0)
        assert scaling == pytest.approx(theirs.attention_scaling, rel=1e-12)


def test_dynamic_is_exact_up_to_the_trained_length_and_refused_beyond() -> None:
    config = ModelConfig.from_hf(description(SCALINGS["dynamic"]), source="")
    plain = ModelConfig.from_hf(description(SCALINGS["default"]), source="")
    np.testing.assert_array_equal(
        rope_frequencies(config, 131_072)[0], rope_frequencies(plain, 131_072)[0]
    )
    with pytest.raises(UserError, match=r"'dynamic'.*131072 tokens and 131073 are asked for"):
        rope_frequencies(config, 131_073)
    rope_frequencies(plain, 131_073)
