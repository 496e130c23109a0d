"""Groups that share a row and a prompt, against one response a row with its own prompt."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rmr1_jax.data.packed_batch import GroupBatch
from rmr1_jax.models.checkpoint import load_model
from rmr1_jax.models.transformer import Params, logical_axes
from rmr1_jax.models.weight_map import flatten
from rmr1_jax.rl.advantage import Reduction
from rmr1_jax.rl.loss import Settings, Sums, grpo
from rmr1_jax.training.sharding_plan import make_sharding_plan
from rmr1_jax.training.step import initial_state, train_step
from tests.rl.grpo_jobs import Job, PerToken, keeping_gradients, random_groups


@cache
def objective_and_gradients(
    directory: Path, settings: Settings, mesh: str
) -> Callable[[GroupBatch], tuple[Sums, Params]]:
    """The sums over a batch and the gradients of its loss; on one device where `mesh` is empty."""
    config, params = load_model(directory, dtype="float32")
    where: dict[str, Any] = {}
    put: Callable[[GroupBatch], GroupBatch] = lambda batch: batch  # noqa: E731
    if mesh:
        sharding = make_sharding_plan(config, mesh, sequence_parallel=False)
        params = jax.device_put(params, sharding.of(logical_axes(config)))
        where = {"constrain": sharding.constrain, "batch_shards": sharding.row_groups}
        put = sharding.put_batch
    optimizer = keeping_gradients()
    step = jax.jit(
        partial(
            train_step,
            config=config,
            objective=partial(grpo, settings=settings, **where),
            optimizer=optimizer,
            dtype=jnp.float32,
        )
    )
    state = initial_state(params, optimizer)

    def compute(batch: GroupBatch) -> tuple[Sums, Params]:
        new, metrics = jax.device_get(step(state, put(batch), {}))
        return metrics.sums, new.optimizer

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize(
    "mesh",
    ["", pytest.param("data=2,fsdp=2,tensor=2", marks=pytest.mark.devices8)],
    ids=["1 device", "8 devices"],
)
@hypothesis_settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    number=st.integers(1, 4),
    samples=st.integers(1, 4),
    reduction=st.sampled_from(["sequence_mean", "pooled_mean", "token_mean"]),
)
def test_sharing_prompts_changes_neither_objective_nor_gradients(
    model_dir: Callable[[str], Path],
    mesh: str,
    ratio: Any,
    seed: int,
    number: int,
    samples: int,
    reduction: Reduction,
) -> None:
    rng = np.random.default_rng(seed)
    groups = random_groups(
        rng, number, reduction, samples=max(samples, 2), prompt=10, response=8, masked=0.2
    )
    groups = [
        replace(
            group,
            responses=group.responses[:samples],
            sampler_logprobs=group.sampler_logprobs[:samples],
            advantages=group.advantages[:samples],
            weights=group.weights[:samples],
        )
        for group in groups
    ]

    def close() -> list[PerToken]:
        return [
            tuple(rng.normal(-4.9, 0.5, len(response)) for response in group.responses)
            for group in groups
        ]

    job, settings = Job(groups, close(), close()), Settings(kl=0.1, ratio=ratio, tis_cap=1.5)
    directory = model_dir("qwen2")
    sums, gradients = objective_and_gradients(directory, settings, mesh)(
        job.packed(pack_length=48, rows=4, micro_batches=4)
    )
    expected, expected_gradients = objective_and_gradients(directory, settings, "")(
        job.naive(rows=16, pack_length=20)
    )
    for name, value in expected._asdict().items():
        assert float(getattr(sums, name)) == pytest.approx(float(value), rel=1e-5, abs=1e-5), name
    scale = max(float(np.abs(leaf).max()) for _, leaf in flatten(expected_gradients))
    for (name, ours), (_, naive) in zip(
        flatten(gradients), flatten(expected_gradients), strict=True
    ):
        np.testing.assert_allclose(ours, naive, rtol=1e-5, atol=1e-5 * scale, err_msg=name)
