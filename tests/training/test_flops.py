"""FLOPs of a step, counted by hand and by the compiler."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import forward, parameter_shapes
from rmr1_jax.training.flops import matrix_parameters, peak_flops, training_flops

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position=64,
)


def test_matrices_are_those_that_multiply_tokens() -> None:
    attention = 32 * (4 + 2 + 2) * 8 + 4 * 8 * 32
    body, head = matrix_parameters(CONFIG)
    assert (body, head) == (2 * (attention + 3 * 32 * 48), 32 * 96)
    assert matrix_parameters(replace(CONFIG, tie_embeddings=True)) == (body, head)


def test_a_step_is_six_a_weight_and_token_and_causal_attention() -> None:
    body, head = matrix_parameters(CONFIG)
    lengths, learnt = np.array([5, 3]), 4
    pairs = (1 + 2 + 3 + 4 + 5) + (1 + 2 + 3)
    attention = 3 * 4 * 2 * 4 * 8 * pairs  # 3 passes x 2 products x 2, layers, heads, head
    assert training_flops(CONFIG, lengths, learnt) == 6 * (body * 8 + head * learnt) + attention
    adapters = training_flops(CONFIG, lengths, learnt, adapters_only=True)
    assert adapters == 4 * (body * 8 + head * learnt) + attention


def test_the_compiler_counts_the_same_matrices() -> None:
    config = replace(CONFIG, num_layers=1)  # it counts the body of a loop once
    tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    lowered = jax.jit(lambda p, t: forward(config, p, t, dtype=jnp.float32)).lower(
        parameter_shapes(config), tokens
    )
    analysis: Any = lowered.compile().cost_analysis()
    ours = training_flops(config, np.array([16]), 16) / 3
    # Norms, rotations, the softmax, and the masked half of the scores are on top.
    assert ours < analysis["flops"] < 1.6 * ours


def test_a_cpu_has_a_measured_peak() -> None:
    assert 1e8 < peak_flops() * jax.local_device_count() < 1e14


@pytest.mark.parametrize("kind", ["TPU v5 lite", "NVIDIA H100 80GB HBM3"])
def test_an_accelerator_has_that_of_its_data_sheet(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Device:
        device_kind = kind

    monkeypatch.setattr("jax.devices", lambda: [Device()])
    peak_flops.cache_clear()
    assert peak_flops() == {"T": 197e12, "N": 989e12}[kind[0]]
    monkeypatch.undo()
    peak_flops.cache_clear()
