"""Bounds of the time of programs whose parts are known."""

import math
from typing import Any

import pytest

from rmr1_jax.planning.analysis import BETWEEN_SLICES, HOP, TimeBounds, time_bounds
from rmr1_jax.planning.chips import CHIPS, GPUS, TPUS
from rmr1_jax.planning.hlo import read_program
from rmr1_jax.planning.hlo_walk import once

V5E = CHIPS["v5e"]
SIZE = 4096
MATRIX = f"bf16[{SIZE},{SIZE}]{{1,0:T(8,128)(2,1)}}"
IN_VMEM = f"bf16[{SIZE},{SIZE}]{{1,0:T(8,128)(2,1)S(1)}}"
MATRIX_BYTES = 2 * SIZE**2
PRODUCT = 2 * SIZE**3 / V5E.peak
DOT = f"{MATRIX} dot(%a, %a), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}"
GATHERED = f"bf16[{4 * SIZE},{SIZE}]{{1,0:T(8,128)(2,1)S(1)}}"
GROUPS = "replica_groups={{0,1,2,3}}, dimensions={0}"


def bounded(*lines: str, **options: Any) -> TimeBounds:
    """Of a program that runs these instructions on a matrix %a in HBM and %v in VMEM."""
    body = "\n".join(f"  {line}" for line in lines)
    text = f"""\
ENTRY %main (a: {MATRIX}, v: {IN_VMEM}) -> {MATRIX} {{
  %a = {MATRIX} parameter(0)
  %v = {IN_VMEM} parameter(1)
{body}
  ROOT %result = {MATRIX} bitcast(%a)
}}
"""
    return time_bounds(read_program(text), V5E, **options)


def test_a_product_takes_its_flops_at_the_peak_and_its_bytes_at_the_bandwidth() -> None:
    found = bounded(f"%b = {DOT}")
    assert found.flops == 2 * SIZE**3 and math.isclose(found.compute, PRODUCT)
    assert (found.read, found.written) == (MATRIX_BYTES, MATRIX_BYTES)  # read once, used twice
    assert math.isclose(found.memory, 2 * MATRIX_BYTES / V5E.hbm_bandwidth)
    assert found.fastest == found.compute > found.memory
    assert math.isclose(found.slowest, found.compute + found.memory)


def test_full_fp32_products_take_six_passes() -> None:
    precision = ", operand_precision={highest,highest}"
    text = one_dot("f32", SIZE).replace(
        "rhs_contracting_dims={0}", f"rhs_contracting_dims={{0}}{precision}"
    )
    found = time_bounds(read_program(text), V5E)
    assert math.isclose(found.compute, 6 * PRODUCT) and found.flops == 2 * SIZE**3


def test_what_is_in_vmem_moves_nothing() -> None:
    assert bounded(f"%b = {IN_VMEM} add(%v, %v)").read == 0


def test_a_collective_goes_beside_the_rest_at_best_and_after_it_at_worst() -> None:
    found = bounded(f"%g = {GATHERED} all-gather(%v), {GROUPS}", f"%b = {DOT}")
    assert found.sent == 3 * MATRIX_BYTES
    seconds = 3 * MATRIX_BYTES / (2 * V5E.link_bandwidth) + 2 * HOP
    assert math.isclose(found.communication, seconds)
    assert found.fastest == max(found.communication, found.compute)
    assert math.isclose(found.slowest, found.compute + found.memory + found.communication)


def test_what_leaves_a_slice_takes_the_slow_way() -> None:
    found = bounded(f"%g = {GATHERED} all-gather(%v), {GROUPS}", devices_per_slice=2)
    assert math.isclose(found.communication, 3 * MATRIX_BYTES / V5E.slow_bandwidth + BETWEEN_SLICES)
    send = (
        f"%s = ({MATRIX}, u32[]{{:S(2)}}, token[]) send(%a, %t), is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    sent = bounded("%t = token[] after-all()", send, devices_per_slice=4)
    assert math.isclose(sent.communication, MATRIX_BYTES / V5E.slow_bandwidth + BETWEEN_SLICES)


KERNEL = f'%k.1 = {MATRIX} custom-call(%a), custom_call_target="tpu_custom_call"'


def test_a_kernel_takes_the_flops_that_it_states() -> None:
    stated = bounded(KERNEL + ', backend_config={"cost_estimate":{"flops":"3000000000000"}}')
    assert (stated.flops, stated.unstated) == (3e12, ())
    assert bounded(KERNEL, kernels=lambda call: 2e12).flops == 2e12
    assert bounded(KERNEL).unstated == ("k",)


LOOPED = f"""\
%cond (s: (s32[], {MATRIX})) -> pred[] {{
  %s = (s32[], {MATRIX}) parameter(0)
  %i = s32[]{{:S(6)}} get-tuple-element(%s), index=0
  %n = s32[]{{:S(6)}} constant(5)
  ROOT %less = pred[]{{:S(6)}} compare(%i, %n), direction=LT
}}

%body (t: (s32[], {MATRIX})) -> (s32[], {MATRIX}) {{
  %t = (s32[], {MATRIX}) parameter(0)
  %j = s32[]{{:S(6)}} get-tuple-element(%t), index=0
  %a = {MATRIX} get-tuple-element(%t), index=1
  %one = s32[]{{:S(6)}} constant(1)
  %next = s32[]{{:S(6)}} add(%j, %one)
  %b = {DOT}
  ROOT %u = (s32[], {MATRIX}) tuple(%next, %b)
}}

ENTRY %main (x: {MATRIX}) -> {MATRIX} {{
  %x = {MATRIX} parameter(0)
  %zero = s32[]{{:S(6)}} constant(0)
  %init = (s32[], {MATRIX}) tuple(%zero, %x)
  %loop = (s32[], {MATRIX}) while(%init), condition=%cond, body=%body
  %y = {MATRIX} get-tuple-element(%loop), index=1
  ROOT %c = {MATRIX} add(%y, %y)
}}
"""


def test_a_loop_counts_its_rounds_and_can_be_looked_at_alone() -> None:
    program = read_program(LOOPED)
    whole = time_bounds(program, V5E)
    assert math.isclose(whole.compute, 5 * PRODUCT)
    inside = time_bounds(program, V5E, within=lambda loop: loop.depth == 0, trips=once)
    assert inside.written == 5 * MATRIX_BYTES < whole.written


def test_a_gpu_has_half_the_rate_for_products_of_fp32() -> None:
    chip = CHIPS["h200"]
    narrow, wide = (time_bounds(read_program(one_dot(k, SIZE)), chip) for k in ("bf16", "f32"))
    assert math.isclose(narrow.compute, 2 * SIZE**3 / chip.peak)
    assert wide.flops == narrow.flops and math.isclose(wide.compute, 2 * narrow.compute)


def one_dot(kind: str, size: int) -> str:
    """A program that multiplies a square matrix with itself."""
    matrix = f"{kind}[{size},{size}]{{1,0}}"
    return f"""\
ENTRY %main (a: {matrix}) -> {matrix} {{
  %a = {matrix} parameter(0)
  ROOT %b = {matrix} dot(%a, %a), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}
"""


@pytest.mark.parametrize("name", [*TPUS, *GPUS])
def test_every_chip_that_can_be_planned_for_has_figures(name: str) -> None:
    chip = CHIPS[name]
    assert 1e14 < chip.peak < 1e16
    assert 1e11 < chip.hbm_bandwidth < 1e13
    assert 1e10 < chip.hbm < 1e12
    assert 1e9 < chip.slow_bandwidth < chip.link_bandwidth
