"""The model computes the same on one device and on any mesh of eight simulated ones."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmr1_jax.config.mesh_config import MeshShape
from rmr1_jax.distributed.mesh import check_mesh, make_mesh
from rmr1_jax.distributed.sharding_rules import (
    DECODING_RULES,
    TRAINING_RULES,
    Rules,
    axis_sizes,
    even_rules,
    shardings,
)
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import forward, logical_axes, random_params

pytestmark = pytest.mark.devices8

B, T = 8, 12
RULES = {"training": TRAINING_RULES, "decoding": DECODING_RULES}


def config_of(vocab_size: int = 96, tie_embeddings: bool = False) -> ModelConfig:
    return ModelConfig(
        model_type="qwen3",
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position=64,
        tie_embeddings=tie_embeddings,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        qk_norm=True,
    )


def inputs(config: ModelConfig) -> tuple[Any, jax.Array, jax.Array]:
    """Parameters, tokens [B, T], and segment ids of rows packed with two segments."""
    tokens = jax.random.randint(jax.random.key(1), (B, T), 0, config.vocab_size)
    segments = jnp.broadcast_to(jnp.arange(T) // 7, (B, T))
    return random_params(config), tokens, segments


def logits(config: ModelConfig, params: Any, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    return forward(config, params, tokens, segment_ids=segments, dtype=jnp.float32)


class Sharded:
    """The model on a mesh: parameters placed by rules, and a step jitted with those shardings."""

    def __init__(self, config: ModelConfig, shape: MeshShape, rules: Rules):
        params, tokens, segments = inputs(config)
        axes = logical_axes(config)
        sizes = axis_sizes(axes, params)
        devices = jax.devices()[: math.prod(shape.sizes.values())]
        shape = check_mesh(shape, num_devices=len(devices), sizes=sizes, rules=rules, batch=B)
        rules = even_rules(rules, sizes, shape.sizes)
        mesh = make_mesh(shape, devices)
        placements = shardings(axes, mesh, rules)
        rows, self.vocabulary = shardings(
            (("batch", "sequence"), ("batch", "sequence", "vocab")), mesh, rules
        )
        self.params = jax.device_put(params, placements)
        self.inputs = (self.params, *jax.device_put((tokens, segments), rows))
        self.step = jax.jit(
            lambda params, tokens, segments: logits(config, params, tokens, segments),
            in_shardings=(placements, rows, rows),
            out_shardings=self.vocabulary,
        )

    def logits(self) -> jax.Array:
        result = self.step(*self.inputs)
        assert result.sharding.is_equivalent_to(self.vocabulary, result.ndim)
        return result

    def share(self, *path: str) -> float:
        """The part of a parameter that one device holds."""
        leaf = self.params
        for key in path:
            leaf = leaf[key]
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) / leaf.size


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Logits of one device."""
    config = config_of()
    return np.asarray(jax.jit(lambda *given: logits(config, *given))(*inputs(config)))


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(
    "shape",
    [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2), (4, 1, 2), (1, 1, 2), (2, 1, 1)],
    ids=str,
)
def test_logits_are_those_of_one_device(
    shape: tuple[int, int, int], rules: str, expected: np.ndarray
) -> None:
    result = Sharded(config_of(), MeshShape(*shape), RULES[rules]).logits()
    assert len(result.sharding.device_set) == math.prod(shape)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_vocabulary_that_does_not_divide_is_kept_whole(tied: bool) -> None:
    config = config_of(vocab_size=97, tie_embeddings=tied)
    model = Sharded(config, MeshShape(2, 2, 2), TRAINING_RULES)
    expected = logits(config, *inputs(config))
    np.testing.assert_allclose(model.logits(), expected, rtol=1e-5, atol=1e-5)
    assert model.share("embed", "embedding") == 1 / 2  # fsdp still splits it


def test_each_device_holds_its_share_of_the_weights() -> None:
    training = Sharded(config_of(), MeshShape(1, 4, 2), TRAINING_RULES)
    decoding = Sharded(config_of(), MeshShape(1, 4, 2), DECODING_RULES)
    for path in (("embed", "embedding"), ("layers", "attention", "key", "kernel")):
        assert training.share(*path) == 1 / 8
        assert decoding.share(*path) == 1 / 2


@pytest.mark.parametrize("tied", [False, True])
def test_only_training_gathers_weights(tied: bool) -> None:
    def program(rules: Rules) -> str:
        model = Sharded(config_of(tie_embeddings=tied), MeshShape(1, 4, 2), rules)
        return model.step.lower(*model.inputs).compile().as_text() or ""

    assert "all-gather" in program(TRAINING_RULES)
    decoding = program(DECODING_RULES)
    assert "all-reduce" in decoding
    assert "all-gather" not in decoding
