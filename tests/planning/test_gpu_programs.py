"""The reader on programs of the GPU compiler, made with no GPU; the sums are done by hand."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from rmr1_jax.planning.analysis import time_bounds
from rmr1_jax.planning.chips import CHIPS, devices_of, parse_topology
from rmr1_jax.planning.collectives import collectives
from rmr1_jax.planning.hbm_bytes import HbmTraffic
from rmr1_jax.planning.hlo import Program, read_program
from rmr1_jax.planning.hlo_flops import dot_flops
from rmr1_jax.planning.hlo_walk import loops, walk

pytest.importorskip("jax_plugins.xla_cuda13", reason="the GPU compiler is not installed")

L, B, T, D, F = 3, 4, 512, 512, 1024


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    """Four H200 that are not here."""
    devices = np.array(devices_of(parse_topology("h200:4")))
    return Mesh(devices, ("fsdp",), axis_types=(AxisType.Auto,))


def compiled(function: Callable[..., Any], *shapes: Any, triton: bool = True) -> Program:
    """Of shapes with shardings."""
    lowered = jax.jit(function).lower(*shapes)
    options: dict[str, Any] = {"xla_gpu_enable_triton_gemm": triton}
    return read_program(lowered.compile(compiler_options=options).as_text() or "")


@pytest.mark.parametrize("triton", [True, False])
def test_a_product_is_counted_whoever_computes_it(mesh: Mesh, triton: bool) -> None:
    def shape(*dims: int) -> Any:
        return jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=NamedSharding(mesh, Spec()))

    def layer(x: Any, w: Any, b: Any) -> Any:
        return jax.nn.relu(x @ w + b)

    program = compiled(layer, shape(B * T, D), shape(D, F), shape(F), triton=triton)
    targets = [i.target for i in program.entry if i.opcode == "custom-call"]
    assert targets == ([] if triton else ["__cublas$lt$matmul"])
    assert dot_flops(program) == 2 * B * T * D * F
    memory = HbmTraffic(program)
    traffic = [memory.of(step.instruction) for step in walk(program)]
    assert sum(t.read for t in traffic) == 2 * (B * T * D + D * F + F)
    assert sum(t.written for t in traffic) == 2 * B * T * F


def test_training_on_several_is_counted_as_by_hand(mesh: Mesh) -> None:
    rows, whole = NamedSharding(mesh, Spec("fsdp")), NamedSharding(mesh, Spec())

    def layer(x: Any, weights: Any) -> Any:
        up, down = (jax.lax.with_sharding_constraint(w, whole) for w in weights)
        return jax.lax.with_sharding_constraint(x + jnp.tanh(x @ up) @ down, rows), None

    def loss(weights: Any, x: Any) -> Any:
        x, _ = jax.lax.scan(jax.checkpoint(layer), x, weights)
        return (x.astype(jnp.float32) ** 2).mean()

    split = NamedSharding(mesh, Spec(None, "fsdp"))
    weights = tuple(
        jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=split) for dims in ((L, D, F), (L, F, D))
    )
    x = jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16, sharding=rows)
    gradient = jax.jit(jax.grad(loss), out_shardings=(split, split))
    program = compiled(gradient, weights, x)
    assert [loop.trips for loop in loops(program)] == [L, L]
    forward = L * 2 * (2 * (B / 4) * T * D * F)
    # The second forward pass ends before its last product, the result of which nothing needs.
    assert dot_flops(program) == forward + forward / 2 + 2 * forward
    found = [c for c in collectives(program) if c.bytes >= D * F]
    gathered = [c for c in found if c.kind == "all-gather"]
    assert {c.group_size for c in found} == {4}
    assert sum(c.times * c.bytes for c in gathered) == 2 * L * 2 * D * F * 2  # twice two matrices
    assert {c.kind for c in found} - {"all-gather"} <= {"reduce-scatter", "all-reduce"}
    chip = CHIPS["h200"]
    found_bounds = time_bounds(program, chip)
    assert found_bounds.flops / chip.peak <= found_bounds.fastest < found_bounds.slowest
