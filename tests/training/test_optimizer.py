"""AdamW, its schedule and its types, against plain formulas and torch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmr1_jax.config import OptimizerConfig
from rmr1_jax.training.step import apply_gradients, learning_rate, make_optimizer, wide

PUBLISHED_STEPS = 8753 // 128  # 68


def test_the_published_schedule_warms_up_for_three_steps_and_ends_at_a_tenth() -> None:
    rate = learning_rate(OptimizerConfig(learning_rate=5e-6), PUBLISHED_STEPS)
    warmup = math.ceil(0.03 * PUBLISHED_STEPS)
    assert warmup == 3
    for step in range(PUBLISHED_STEPS + 1):
        if step < warmup:
            share = step / warmup
        else:
            progress = (step - warmup) / (PUBLISHED_STEPS - warmup)
            share = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
        assert float(rate(step)) == pytest.approx(5e-6 * share, rel=1e-5)


@pytest.mark.parametrize(("warmup", "expected"), [(0.0, 0), (10, 10), (0.5, 34)])
def test_warmup_is_a_share_or_a_number_of_steps(warmup: float, expected: int) -> None:
    rate = learning_rate(OptimizerConfig(learning_rate=1.0, warmup=warmup), PUBLISHED_STEPS)
    assert float(rate(expected)) == pytest.approx(1.0)
    assert all(float(rate(step)) < 1.0 for step in range(expected))


def test_a_run_of_one_step_has_a_schedule() -> None:
    assert np.isfinite(float(learning_rate(OptimizerConfig(), 1)(0)))


def test_updates_equal_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, warmup=0, final_lr_ratio=1.0)
    optimizer = make_optimizer(config, 10)
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 4)).astype(np.float32)
    ours, state = {"w": jnp.asarray(start)}, None
    state = optimizer.init(wide(ours))
    theirs = torch.nn.Parameter(torch.tensor(start))
    reference = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        gradient = 3 * rng.normal(size=start.shape).astype(np.float32)
        ours, state = apply_gradients(optimizer, {"w": jnp.asarray(gradient)}, state, ours)
        theirs.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        reference.step()
    np.testing.assert_allclose(ours["w"], theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_bfloat16_parameters_have_float32_moments() -> None:
    params = {"w": jnp.ones((3,), jnp.bfloat16)}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.5, warmup=0), 4)
    state = optimizer.init(wide(params))
    new, state = apply_gradients(optimizer, {"w": jnp.ones((3,), jnp.bfloat16)}, state, params)
    assert new["w"].dtype == jnp.bfloat16
    assert not np.array_equal(new["w"], params["w"])
    moments = [x for x in jax.tree.leaves(state) if x.ndim]
    assert len(moments) == 2 and all(x.dtype == jnp.float32 for x in moments)
