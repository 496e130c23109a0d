"""With the TPU kernel, interpreted, sampling gives the same tokens as without."""

from collections.abc import Callable

import jax
import pytest

from rmr1_jax.config.mesh_config import MeshShape
from rmr1_jax.distributed.mesh import make_mesh
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.ops import decode_attention
from rmr1_jax.ops.decode_attention import LiveAttention, masked
from rmr1_jax.sampling.decode_programs import Programs
from rmr1_jax.sampling.scheduler import Scheduler
from tests.sampling.conftest import random_requests
from tests.sampling.test_decode_loop import LONGEST, answers, texts
from tests.sampling.test_decode_loop_sharded import scheduler_on

pytestmark = pytest.mark.usefixtures("never_compact")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slots", "samples", "longest"),
    [
        (5, 3, 40),
        pytest.param(5, 3, LONGEST, marks=pytest.mark.nightly),
        pytest.param(4, 1, 40, marks=pytest.mark.nightly),
    ],
)
def test_live_blocks_are_all_that_matters(
    scheduler_of: Callable[..., Scheduler],
    config: ModelConfig,
    weights: Params,
    slots: int,
    samples: int,
    longest: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With more than 128 tokens, also after the cache has grown."""
    requests = random_requests(8, longest_response=longest, seed=9, temperature=1.0)
    expected = texts(answers(scheduler_of(slots, samples), requests))
    interpret(monkeypatch)
    ours = Scheduler(config, weights, slots=slots, group_size=samples)
    assert texts(answers(ours, requests)) == expected


@pytest.mark.devices8
@pytest.mark.slow
def test_devices_of_a_group_read_the_live_blocks_of_their_heads(
    scheduler_of: Callable[..., Scheduler],
    config: ModelConfig,
    params: Params,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = random_requests(8, longest_response=40, seed=9, temperature=1.0)
    expected = texts(answers(scheduler_of(5, 3), requests))
    interpret(monkeypatch)
    mesh = make_mesh(MeshShape(1, 2, 2), jax.devices()[:4])
    assert texts(answers(scheduler_on(mesh, config, params, 3), requests)) == expected


@pytest.mark.devices8
def test_cpus_read_all_positions(
    scheduler_of: Callable[..., Scheduler], config: ModelConfig, params: Params
) -> None:
    assert scheduler_of(4).programs.attention is masked
    mesh = make_mesh(MeshShape(1, 2, 2), jax.devices()[:4])
    assert scheduler_on(mesh, config, params, 1).programs.attention is masked


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_attention, "AT_ONCE", 2)  # what is unrolled takes long to interpret
    attention = property(
        lambda self: LiveAttention(None if self.mesh is None else "tensor", interpret=True)
    )
    monkeypatch.setattr(Programs, "attention", attention)
