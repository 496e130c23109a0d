"""A training step against torch, which takes every sequence by itself."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmr1_jax.config import OptimizerConfig
from rmr1_jax.data.packed_batch import Batch
from rmr1_jax.models.checkpoint import load_model
from rmr1_jax.models.huggingface import save_huggingface
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Remat, logical_axes
from rmr1_jax.models.weight_map import flatten
from rmr1_jax.training.nll import nll
from rmr1_jax.training.sharding_plan import ShardingPlan, make_sharding_plan
from rmr1_jax.training.step import (
    TrainState,
    evaluation_step,
    initial_state,
    make_learner,
    make_optimizer,
    train_step,
)
from tests.training.conftest import MakePacked, Packed

# With the usual epsilon, AdamW turns a gradient that is nothing but rounding into a whole step.
SETTINGS = OptimizerConfig(
    learning_rate=1e-2, warmup=0.0, final_lr_ratio=1.0, weight_decay=0.01, epsilon=1e-3
)
STEPS = 3


@cache
def jitted_step(directory: Path, remat: Remat = "none") -> tuple[ModelConfig, Any, Any]:
    """The model's config, the first state and the compiled step; shared by the tests."""
    config, params = load_model(directory, dtype="float32")
    optimizer = make_optimizer(SETTINGS, 100)
    step = jax.jit(
        partial(
            train_step,
            config=config,
            objective=partial(nll, remat=remat),
            optimizer=optimizer,
            dtype=jnp.float32,
        )
    )
    return config, jax.jit(partial(initial_state, optimizer=optimizer))(params), step


def trained(
    directory: Path, batches: list[Batch], remat: Remat = "none"
) -> tuple[TrainState, list[Any], ModelConfig]:
    """The state after a step on each batch, what the steps reported, and the model's config."""
    config, state, step = jitted_step(directory, remat)
    reported = []
    for batch in batches:
        state, metrics = step(state, batch, {})
        reported.append(jax.device_get(metrics))
    return state, reported, config


class TorchReference:
    """The same by transformers and torch, one sequence at a time, nothing packed."""

    def __init__(self, directory: Path) -> None:
        torch = pytest.importorskip("torch")
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.01
        )

    def step(self, packed: Packed, loss: str) -> tuple[float, float]:
        """(loss, gradient norm)."""
        torch, total = self.torch, 0.0
        self.optimizer.zero_grad()
        weight = (
            len(packed.sequences)
            if loss == "sequence_mean"
            else sum(sequence.learnt for sequence in packed.sequences)
        )
        for sequence in packed.sequences:
            tokens = torch.tensor(sequence.tokens)[None]
            logprobs = self.model(tokens).logits[0].log_softmax(-1)
            each = logprobs[:-1].gather(1, tokens[0, 1:, None])[sequence.loss_from - 1 :]
            share = each.mean() if loss == "sequence_mean" else each.sum()
            (-share / weight).backward()
            total -= share.item() / weight
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return total, float(norm)


@pytest.mark.parametrize(
    ("family", "loss"),
    [
        ("llama", "sequence_mean"),
        ("qwen3", "token_mean"),
        pytest.param("llama", "token_mean", marks=pytest.mark.nightly),
        pytest.param("qwen3", "sequence_mean", marks=pytest.mark.nightly),
    ],
)
def test_losses_norms_and_weights_are_those_of_torch(
    family: str,
    loss: str,
    model_dir: Callable[[str], Path],
    packed: MakePacked,
    tmp_path: Path,
) -> None:
    directory = model_dir(family)
    reference, all_packed = TorchReference(directory), [packed(s, loss=loss) for s in range(STEPS)]
    state, reported, config = trained(directory, [each.batch for each in all_packed])
    for each, metrics in zip(all_packed, reported, strict=True):
        expected_loss, expected_norm = reference.step(each, loss)
        assert float(metrics.sums.loss) == pytest.approx(expected_loss, rel=2e-5)
        assert float(metrics.gradient_norm) == pytest.approx(expected_norm, rel=2e-4)
    save_huggingface(state.params, config, tmp_path / "ours")
    from safetensors.numpy import load_file

    ours: dict[str, np.ndarray] = {}
    for file in (tmp_path / "ours").glob("*.safetensors"):
        ours |= load_file(file)
    theirs = dict(reference.model.named_parameters())
    for name, values in ours.items():
        np.testing.assert_allclose(
            values, theirs[name].detach().numpy(), rtol=2e-3, atol=2e-4, err_msg=name
        )


@pytest.mark.parametrize(
    "remat", [pytest.param("dots", marks=pytest.mark.nightly), "attention", "full"]
)
def test_what_is_computed_again_changes_nothing(
    remat: Remat, model_dir: Callable[[str], Path], packed: MakePacked
) -> None:
    batches = [packed(0).batch]
    state, [metrics], _ = trained(model_dir("llama"), batches)
    other, [other_metrics], _ = trained(model_dir("llama"), batches, remat=remat)
    assert float(metrics.sums.loss) == pytest.approx(float(other_metrics.sums.loss), rel=1e-6)
    for (name, a), (_, b) in zip(flatten(state.params), flatten(other.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name)


def test_micro_batches_are_only_a_way_to_compute(
    model_dir: Callable[[str], Path], packed: MakePacked
) -> None:
    batch = packed(0, micro_batches=1, rows=4).batch
    split = Batch(*(leaf.reshape(4, 1, -1) for leaf in batch))
    state, [metrics], _ = trained(model_dir("llama"), [batch])
    other, [other_metrics], _ = trained(model_dir("llama"), [split])
    assert float(metrics.sums.loss) == pytest.approx(float(other_metrics.sums.loss), rel=1e-5)
    assert metrics.sums.tokens == other_metrics.sums.tokens
    for (name, a), (_, b) in zip(flatten(state.params), flatten(other.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


def with_empty_ones(batch: Batch) -> Batch:
    """The batch with two more micro-batches, which hold nothing."""
    return Batch(*(np.pad(leaf, ((0, 2), (0, 0), (0, 0))) for leaf in batch))


def test_micro_batches_that_hold_nothing_change_nothing(
    model_dir: Callable[[str], Path], packed: MakePacked
) -> None:
    batch = packed(0).batch
    state, [metrics], config = trained(model_dir("llama"), [batch])
    other, [other_metrics], _ = trained(model_dir("llama"), [with_empty_ones(batch)])
    assert metrics.sums == other_metrics.sums
    for (name, a), (_, b) in zip(flatten(state.params), flatten(other.params), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    sums = evaluation_step(
        state.params,
        batch._replace(loss_weights=np.zeros_like(batch.loss_weights)),
        {},
        config=config,
        objective=nll,
        dtype=jnp.float32,
    )
    assert all(float(value) == 0 for value in sums)


def test_a_step_without_any_weight_has_no_loss_and_no_gradient(
    model_dir: Callable[[str], Path], packed: MakePacked
) -> None:
    batch = packed(0).batch
    nothing = batch._replace(loss_weights=np.zeros_like(batch.loss_weights))
    _, [metrics], _ = trained(model_dir("llama"), [nothing])
    assert (float(metrics.sums.loss), float(metrics.gradient_norm)) == (0.0, 0.0)
    assert bool(metrics.finite)


@pytest.mark.devices8
@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "sequence_parallel"),
    [
        pytest.param("fsdp=8", False, marks=pytest.mark.nightly),
        pytest.param("fsdp=4,tensor=2", False, marks=pytest.mark.nightly),
        pytest.param("data=2,fsdp=2,tensor=2", False, marks=pytest.mark.nightly),
        ("data=2,fsdp=2,tensor=2", True),
    ],
)
def test_a_mesh_takes_the_same_steps(
    mesh: str, sequence_parallel: bool, model_dir: Callable[[str], Path], packed: MakePacked
) -> None:
    directory = model_dir("llama")
    batches = [packed(seed, micro_batches=1, rows=8).batch for seed in range(2)]
    expected, expected_metrics, config = trained(directory, batches)
    sharding: ShardingPlan = make_sharding_plan(config, mesh, sequence_parallel=sequence_parallel)
    placed = sharding.of(logical_axes(config))
    _, params = load_model(directory, dtype="float32", shardings=placed)
    objective = partial(nll, constrain=sharding.constrain, batch_shards=sharding.row_groups)
    learner = make_learner(
        config, objective, make_optimizer(SETTINGS, 100), params, sharding, jnp.float32
    )
    state = learner.start(params)
    for batch, before in zip(batches, expected_metrics, strict=True):
        state, metrics = learner.update(state, sharding.put_batch(batch), {})
        assert float(metrics.sums.loss) == pytest.approx(float(before.sums.loss), rel=1e-5)
        assert float(metrics.gradient_norm) == pytest.approx(float(before.gradient_norm), rel=1e-4)
    for (name, a), (_, b) in zip(flatten(state.params), flatten(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4, err_msg=name)
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim > 1]
    assert any(not leaf.sharding.is_fully_replicated for leaf in moments)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    model_dir: Callable[[str], Path], packed: MakePacked
) -> None:
    good = packed(0).batch
    bad, worse = (
        good._replace(loss_weights=np.where(good.loss_weights > 0, value, 0).astype("f4"))
        for value in (np.inf, np.nan)
    )
    state, [first, second, third], _ = trained(model_dir("llama"), [good, bad, worse])
    once, _, _ = trained(model_dir("llama"), [good])
    assert (bool(first.finite), bool(second.finite), bool(third.finite)) == (True, False, False)
    assert (int(third.bad_steps), int(third.skipped), int(state.step)) == (2, 2, 3)
    for (name, a), (_, b) in zip(flatten(state.params), flatten(once.params), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    state, reported, _ = trained(model_dir("llama"), [bad, good])
    assert (int(reported[1].bad_steps), int(reported[1].skipped)) == (0, 1)


def test_evaluation_reports_the_same_loss(
    model_dir: Callable[[str], Path], packed: MakePacked
) -> None:
    batch = packed(0).batch
    _, [metrics], config = trained(model_dir("llama"), [batch])
    _, params = load_model(model_dir("llama"), dtype="float32")
    sums = evaluation_step(params, batch, {}, config=config, objective=nll, dtype=jnp.float32)
    for name in sums._fields:
        expected = float(getattr(metrics.sums, name))
        assert float(getattr(sums, name)) == pytest.approx(expected, rel=1e-6)


def test_gradient_accumulation_holds_one_micro_batch_at_a_time(
    model_dir: Callable[[str], Path], packed: MakePacked
) -> None:
    config, params = load_model(model_dir("llama"), dtype="float32")
    optimizer = make_optimizer(SETTINGS, 100)

    def temporary(batch: Batch) -> int:
        step = partial(
            train_step, config=config, objective=nll, optimizer=optimizer, dtype=jnp.float32
        )
        lowered = jax.jit(step).lower(initial_state(params, optimizer), batch, {})
        analysis = lowered.compile().memory_analysis()
        assert analysis is not None
        return int(analysis.temp_size_in_bytes)

    one, many = (packed(0, micro_batches=n, rows=2).batch for n in (1, 16))
    assert temporary(many) < 1.5 * temporary(one)
