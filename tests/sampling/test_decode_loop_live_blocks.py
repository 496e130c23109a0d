"""With the kernel of TPUs, interpreted, the engine writes the tokens that it writes without."""

import jax
import pytest

from rmr1_jax.config.mesh_config import MeshShape
from rmr1_jax.distributed.mesh import make_mesh
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.ops import decode_kernel
from rmr1_jax.ops.decode_attention import LiveAttention, masked
from rmr1_jax.sampling.decode_programs import Programs
from rmr1_jax.sampling.scheduler import Scheduler
from tests.sampling.conftest import random_requests
from tests.sampling.test_decode_loop import answers, texts
from tests.sampling.test_decode_loop_sharded import engine_on


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "longest"), [(1, 40), (3, 200)])  # the latter outgrows a ring
def test_live_blocks_are_all_that_matters(
    config: ModelConfig,
    weights: Params,
    samples: int,
    longest: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = random_requests(8, longest_response=longest, seed=9, temperature=1.0)
    expected = texts(answers(Scheduler(config, weights, slots=4, group_size=samples), requests))
    interpret(monkeypatch)
    ours = Scheduler(config, weights, slots=4, group_size=samples)
    assert texts(answers(ours, requests)) == expected


@pytest.mark.devices8
@pytest.mark.slow
def test_devices_of_a_group_read_the_live_blocks_of_their_heads(
    config: ModelConfig, params: Params, weights: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = random_requests(8, longest_response=40, seed=9, temperature=1.0)
    expected = texts(answers(Scheduler(config, weights, slots=4, group_size=3), requests))
    interpret(monkeypatch)
    mesh = make_mesh(MeshShape(1, 2, 2), jax.devices()[:4])
    assert texts(answers(engine_on(mesh, config, params, 3), requests)) == expected


@pytest.mark.devices8
def test_cpus_read_all_columns(config: ModelConfig, params: Params, weights: Params) -> None:
    assert Scheduler(config, weights, slots=4).programs.attention is masked
    mesh = make_mesh(MeshShape(1, 2, 2), jax.devices()[:4])
    assert engine_on(mesh, config, params, 1).programs.attention is masked


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_kernel, "AT_ONCE", 2)  # what is unrolled takes long to interpret
    attention = property(
        lambda self: LiveAttention(None if self.mesh is None else "tensor", interpret=True)
    )
    monkeypatch.setattr(Programs, "attention", attention)
