"""Training with less memory and on any mesh gives the same gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmr1_jax.config.mesh_config import MeshShape
from rmr1_jax.distributed.mesh import make_mesh
from rmr1_jax.distributed.sharding_rules import TRAINING_RULES, partition_spec, shardings
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import (
    Remat,
    logical_axes,
    parameter_shapes,
    random_params,
    with_params,
)
from rmr1_jax.ops.constrain import Constrain, unconstrained
from rmr1_jax.ops.cross_entropy import target_logprobs

B, LENGTHS = 8, (40, 90, 30)  # the last is padding; rows are longer than a block of attention
T = sum(LENGTHS)
SPLIT_SEQUENCE = {**TRAINING_RULES, "sequence": ("tensor",)}


def config_of(**changes: Any) -> ModelConfig:
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2}
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "max_position": 256}
    return ModelConfig(model_type="qwen3", qk_norm=True, **{**sizes, **heads, **changes})


def batch() -> dict[str, jax.Array]:
    """Rows of two segments and padding, and targets for the second half of each row."""
    rng = np.random.default_rng(0)
    segment_ids = np.repeat([1, 2, 0], LENGTHS)
    positions = np.concatenate([np.arange(length) for length in LENGTHS])
    whole = lambda row: jnp.asarray(np.tile(row, (B, 1)))  # noqa: E731
    return {
        "tokens": jnp.asarray(rng.integers(0, 96, (B, T))),
        "positions": whole(positions),
        "segment_ids": whole(segment_ids),
        "targets": jnp.asarray(rng.integers(0, 96, (B, T))),
        "valid": whole((segment_ids > 0) & (np.arange(T) > T // 2)),
    }


def loss(
    config: ModelConfig,
    params: Any,
    given: dict[str, jax.Array],
    *,
    remat: Remat = "none",
    constrain: Constrain = unconstrained,
    batch_shards: int = 1,
) -> jax.Array:
    model = with_params(config, params, dtype=jnp.float32)
    hidden = model(
        given["tokens"],
        given["positions"],
        given["segment_ids"],
        remat=remat,
        constrain=constrain,
    )
    head, layout = model.head()
    logprobs, _ = target_logprobs(
        hidden,
        head,
        given["targets"],
        given["valid"],
        layout=layout,
        chunk=40,
        batch_shards=batch_shards,
        constrain=constrain,
    )
    return -logprobs.sum() / given["valid"].sum()


def assert_same(ours: Any, expected: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()),
        jax.tree.map(np.asarray, ours),
        jax.tree.map(np.asarray, expected),
    )


@functools.cache
def one_device(tied: bool) -> tuple[Any, Any]:
    """Parameters, and the loss and gradients of one device that keeps everything."""
    config = config_of(tie_embeddings=tied)
    params = random_params(config)
    step = jax.value_and_grad(lambda params: loss(config, params, batch()))
    return params, jax.jit(step)(params)


# "full" is what the meshes below compute with.
@pytest.mark.parametrize("remat", [pytest.param("dots", marks=pytest.mark.nightly), "attention"])
def test_what_is_computed_again_changes_no_gradient(remat: Remat) -> None:
    params, expected = one_device(tied=True)
    config, given = config_of(tie_embeddings=True), batch()
    step = jax.value_and_grad(lambda params: loss(config, params, given, remat=remat))
    assert_same(jax.jit(step)(params), expected)


@pytest.mark.parametrize(
    "policies",
    [
        ("full", "none"),
        pytest.param(("full", "attention", "dots", "none"), marks=pytest.mark.nightly),
    ],
    ids=["two", "all"],
)
def test_each_policy_keeps_more_than_the_one_before(policies: tuple[Remat, ...]) -> None:
    config = config_of(num_layers=8)
    shapes = parameter_shapes(config)
    given = {name: leaf[:, :64] for name, leaf in batch().items()}

    def memory(remat: Remat) -> int:
        step = jax.jit(jax.grad(lambda params: loss(config, params, given, remat=remat)))
        memory: Any = step.lower(shapes).compile().memory_analysis()
        return int(memory.temp_size_in_bytes)

    kept = [memory(remat) for remat in policies]
    assert kept == sorted(set(kept))


@pytest.mark.devices8
@pytest.mark.parametrize(
    ("shape", "tied", "sequence"),
    [
        pytest.param((1, 8, 1), True, "whole", marks=pytest.mark.nightly),
        ((1, 4, 2), True, "split"),
        ((2, 2, 2), False, "whole"),
        pytest.param((2, 2, 2), False, "split", marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_any_mesh_gives_the_gradients_of_one_device(
    shape: tuple[int, int, int], tied: bool, sequence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config, given = config_of(tie_embeddings=tied), batch()
    params, expected = one_device(tied)
    mesh = make_mesh(MeshShape(*shape))
    rules = SPLIT_SEQUENCE if sequence == "split" else TRAINING_RULES
    placed = shardings(logical_axes(config), mesh, rules)
    rows = shardings(dict.fromkeys(given, ("batch", None)), mesh, rules)

    def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        place = jax.sharding.NamedSharding(mesh, partition_spec(axes, rules))
        return jax.lax.with_sharding_constraint(x, place)

    def step(params: Any, given: Any) -> Any:
        settings: Any = {"remat": "full", "constrain": constrain}
        return jax.value_and_grad(
            lambda params: loss(config, params, given, batch_shards=shape[0] * shape[1], **settings)
        )(params)

    program = jax.jit(step, in_shardings=(placed, rows), out_shardings=(None, placed))
    ours = program(jax.device_put(params, placed), jax.device_put(given, rows))
    assert_same(ours, expected)
    assert "rematerialization" not in capfd.readouterr().err
