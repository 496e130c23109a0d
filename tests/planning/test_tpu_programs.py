"""The reader on programs of the TPU compiler, made with no TPU; the sums are done by hand."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from rmr1_jax.planning.analysis import time_bounds
from rmr1_jax.planning.chips import CHIPS
from rmr1_jax.planning.collectives import collectives
from rmr1_jax.planning.hbm_bytes import copies
from rmr1_jax.planning.hlo import Program, read_program
from rmr1_jax.planning.hlo_flops import dot_flops
from rmr1_jax.planning.hlo_walk import loops, once

L, B, T, D, F = 3, 4, 512, 512, 1024
NO_WINDOWS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    """Four chips of a v5e that is not here."""
    pytest.importorskip("libtpu")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    except Exception as error:
        pytest.skip(f"the TPU compiler does not start: {error}")
    return Mesh(np.array(topology.devices), ("fsdp",), axis_types=(AxisType.Auto,))


def compiled(function: Callable[..., Any], *shapes: Any, **options: Any) -> Program:
    """Of shapes with shardings."""
    lowered = jax.jit(function, **options).lower(*shapes)
    return read_program(lowered.compile(compiler_options=NO_WINDOWS).as_text() or "")


@pytest.fixture(scope="module")
def training(mesh: Mesh) -> Program:
    """Gradients of a scanned model, its weights split over all chips, its rows too."""

    def shape(*dims: int, spec: Spec) -> Any:
        return jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    rows = NamedSharding(mesh, Spec("fsdp"))
    whole = NamedSharding(mesh, Spec())

    def layer(x: Any, weights: Any) -> Any:
        up, down = (jax.lax.with_sharding_constraint(w, whole) for w in weights)
        return jax.lax.with_sharding_constraint(x + jnp.tanh(x @ up) @ down, rows), None

    def loss(weights: Any, x: Any) -> Any:
        x, _ = jax.lax.scan(jax.checkpoint(layer), x, weights)
        return (x.astype(jnp.float32) ** 2).mean()

    weights = (
        shape(L, D, F, spec=Spec(None, "fsdp")),
        shape(L, F, D, spec=Spec(None, "fsdp")),
    )
    placed = tuple(w.sharding for w in weights)
    return compiled(
        jax.grad(loss), weights, shape(B, T, D, spec=Spec("fsdp")), out_shardings=placed
    )


def test_products_of_a_sharded_model_are_those_counted_by_hand(training: Program) -> None:
    forward = L * 2 * (2 * (B / 4) * T * D * F)
    # The second forward pass ends before its last product, the result of which nothing needs.
    assert dot_flops(training) == forward + forward / 2 + 2 * forward


def test_layers_are_counted_from_the_condition_of_their_loop(training: Program) -> None:
    assert [loop.trips for loop in loops(training)] == [L, L]


def test_weights_are_gathered_and_gradients_scattered(training: Program) -> None:
    found = [c for c in collectives(training) if c.bytes >= D * F]
    gathered = [c for c in found if c.kind == "all-gather"]
    assert {c.group_size for c in found} == {4}
    assert sum(c.times * c.bytes for c in gathered) == 2 * L * 2 * D * F * 2  # twice two matrices
    others = {c.kind for c in found} - {"all-gather"}
    assert others and others <= {"reduce-scatter", "all-reduce"}


def test_a_step_takes_no_less_than_its_products_and_no_more_than_all_of_it(
    training: Program,
) -> None:
    chip = CHIPS["v5e"]
    found = time_bounds(training, chip)
    assert found.flops == dot_flops(training)
    assert found.flops / chip.peak <= found.fastest < found.slowest
    assert found.sent > 0 and found.unstated == ()


ROWS, COLUMNS, HEAD = 64, 8192, 128
CACHE_BYTES = ROWS * COLUMNS * HEAD * 2  # too large for VMEM


def cache_shapes(mesh: Mesh, *, stacked: bool) -> tuple[Any, Any, Any]:
    alone = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])

    def shape(dtype: Any, *dims: int) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=alone)

    layer = (ROWS, COLUMNS, HEAD)
    caches = (
        shape(jnp.bfloat16, L, *layer)
        if stacked
        else tuple(shape(jnp.bfloat16, *layer) for _ in range(L))
    )
    return caches, shape(jnp.bfloat16, ROWS, HEAD), shape(jnp.int32)


def attend(x: Any, cache: Any, step: Any) -> tuple[Any, Any]:
    """Write one column, read all."""
    cache = jax.lax.dynamic_update_slice(cache, x[:, None], (0, step, 0))
    scores = jnp.einsum("rh,rch->rc", x, cache, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores).astype(x.dtype)
    return jnp.einsum("rc,rch->rh", weights, cache), cache


def test_a_cache_updated_in_place_is_not_copied(mesh: Mesh) -> None:
    def decode(caches: Any, x: Any, steps: Any) -> Any:
        def body(state: Any) -> Any:
            i, caches, x = state
            new = []
            for cache in caches:
                x, cache = attend(x, cache, i)
                new.append(cache)
            return i + 1, tuple(new), x

        return jax.lax.while_loop(lambda s: s[0] < steps, body, (0, caches, x))[1:]

    program = compiled(decode, *cache_shapes(mesh, stacked=False), donate_argnums=0)
    (loop,) = loops(program)
    assert loop.trips is None
    assert copies(program, CACHE_BYTES / 2, within=lambda found: found.depth == 0) == []
    step = time_bounds(program, CHIPS["v5e"], trips=once, within=lambda found: True)
    assert L * CACHE_BYTES <= step.read <= 2.1 * L * CACHE_BYTES  # for scores, and for values
    assert step.written < 0.05 * CACHE_BYTES


def test_a_cache_that_is_scanned_over_is_copied(mesh: Mesh) -> None:
    def decode(caches: Any, x: Any, steps: Any) -> Any:
        def body(state: Any) -> Any:
            i, caches, x = state
            x, caches = jax.lax.scan(lambda x, cache: attend(x, cache, i), x, caches)
            return i + 1, caches, x

        return jax.lax.while_loop(lambda s: s[0] < steps, body, (0, caches, x))[1:]

    program = compiled(decode, *cache_shapes(mesh, stacked=True), donate_argnums=0)
    found = copies(program, CACHE_BYTES / 2, within=lambda loop: loop.depth == 0)
    assert sum(c.times * c.bytes for c in found) >= L * CACHE_BYTES


def test_a_pallas_kernel_is_found_by_its_name(mesh: Mesh) -> None:
    pallas = pytest.importorskip("jax.experimental.pallas")

    def double(x_ref: Any, y_ref: Any) -> None:
        y_ref[...] = x_ref[...] * 2

    def f(x: Any) -> Any:
        return pallas.pallas_call(double, out_shape=x, name="twice")(x) + 1

    alone = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
    x = jax.ShapeDtypeStruct((256, 512), jnp.float32, sharding=alone)
    program = compiled(f, x)
    assert time_bounds(program, CHIPS["v5e"]).unstated == ("twice",)
    stated = time_bounds(program, CHIPS["v5e"], kernels=lambda call: 1e9)
    assert stated.unstated == () and stated.flops == 1e9
