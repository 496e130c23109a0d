"""Estimated seconds of programs whose parts are known."""

import math

import pytest

from rmr1_jax.planning.chips import CHIPS
from rmr1_jax.planning.estimate import (
    BANDWIDTH_EFFICIENCY,
    BETWEEN_SLICES,
    HOP,
    SLOW_READS,
    Estimate,
    estimate,
)
from rmr1_jax.planning.hlo import read_program
from rmr1_jax.planning.hlo_walk import once
from rmr1_jax.planning.topology import GPUS, TPUS

V5E = CHIPS["v5e"]
SIZE = 4096
MATRIX = f"bf16[{SIZE},{SIZE}]{{1,0:T(8,128)(2,1)}}"
IN_VMEM = f"bf16[{SIZE},{SIZE}]{{1,0:T(8,128)(2,1)S(1)}}"
MATRIX_BYTES = 2 * SIZE**2
PRODUCT = 2 * SIZE**3 / V5E.peak
STREAM = V5E.hbm_bandwidth * BANDWIDTH_EFFICIENCY
DOT = f"{MATRIX} dot(%a, %a), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}"


def priced(*lines: str, **options: object) -> Estimate:
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
    return estimate(read_program(text), V5E, **options)  # type: ignore[arg-type]


def test_a_product_takes_its_flops_at_the_peak() -> None:
    found = priced(f"%b = {DOT}")
    assert found.flops == 2 * SIZE**3
    assert math.isclose(found.seconds, PRODUCT)
    assert math.isclose(found.matmul_seconds, PRODUCT)
    assert (found.read, found.written) == (MATRIX_BYTES, MATRIX_BYTES)  # read once, used twice


def test_a_sum_takes_its_bytes_at_the_bandwidth() -> None:
    found = priced(f"%b = {MATRIX} add(%a, %v)")
    assert math.isclose(found.seconds, 2 * MATRIX_BYTES / STREAM)
    assert math.isclose(found.roofline_seconds, 2 * MATRIX_BYTES / V5E.hbm_bandwidth)
    assert found.matmul_seconds == found.flops == 0


def test_full_fp32_products_take_six_passes() -> None:
    wide = MATRIX.replace("bf16", "f32")
    dot = DOT.replace("bf16", "f32").replace("%a", "%w")
    plain = priced(f"%w = {wide} custom-call(), custom_call_target=AllocateBuffer", f"%b = {dot}")
    exact = priced(
        f"%w = {wide} custom-call(), custom_call_target=AllocateBuffer",
        f"%b = {dot}, operand_precision={{highest,highest}}",
    )
    assert math.isclose(exact.seconds, 6 * plain.seconds)
    assert exact.flops == plain.flops


def cycles(seconds: float) -> str:
    assert V5E.clock
    count = round(seconds * V5E.clock)
    return f'backend_config={{"window_config":{{"estimated_cycles":"{count}"}}}}'


def test_the_compilers_cycles_bound_products_fully_and_reads_in_part() -> None:
    slow = priced(f"%b = {DOT}, {cycles(2 * PRODUCT)}")
    assert math.isclose(slow.seconds, 2 * PRODUCT, rel_tol=1e-3)
    quick = priced(f"%b = {DOT}, {cycles(PRODUCT / 2)}")
    assert math.isclose(quick.seconds, PRODUCT)
    reads = priced(f"%b = {MATRIX} add(%a, %a), {cycles(0.3)}")
    assert math.isclose(reads.seconds, 0.3 / SLOW_READS, rel_tol=1e-3)
    assert reads.compiler_seconds == pytest.approx(0.3, rel=1e-3)
    in_vmem = priced(f"%b = {IN_VMEM} add(%v, %v), {cycles(0.3)}")
    assert math.isclose(in_vmem.seconds, 0.3, rel_tol=1e-3)


PREFETCH = f"%start = ({IN_VMEM}, {MATRIX}, u32[]{{:S(2)}}) copy-start(%a)"


def test_a_prefetch_hides_behind_work_until_the_memory_is_busy() -> None:
    product_in_vmem = DOT.replace("%a", "%v").replace(MATRIX, IN_VMEM)
    alone = priced(PREFETCH)
    assert math.isclose(alone.seconds, MATRIX_BYTES / STREAM)
    hidden = priced(PREFETCH, f"%b = {product_in_vmem}")
    assert math.isclose(hidden.seconds, PRODUCT)
    assert math.isclose(hidden.seconds_without_overlap, PRODUCT + alone.seconds)


DONE = f"%done = {IN_VMEM} copy-done(%start)"


def test_a_prefetch_goes_on_beside_what_stands_between_its_start_and_its_end() -> None:
    product = f"%b = {DOT.replace('%a', '%v').replace(MATRIX, IN_VMEM)}"
    copy = MATRIX_BYTES / STREAM
    assert math.isclose(priced(PREFETCH, product, DONE).seconds, PRODUCT)
    assert math.isclose(priced(PREFETCH, DONE, product).seconds, copy + PRODUCT)
    assert math.isclose(priced(product, PREFETCH, DONE).seconds, PRODUCT + copy)
    # What reads the memory itself leaves none for others.
    reads = f"%c = {IN_VMEM} negate(%a)"
    assert math.isclose(priced(PREFETCH, reads, DONE).seconds, 2 * copy)
    waits = f"%g = {GATHERED} all-gather(%v), {GROUPS}"
    assert math.isclose(priced(PREFETCH, waits, DONE).seconds, GATHER_SECONDS)
    assert priced(PREFETCH, DONE, product).roofline_seconds < copy + PRODUCT


GROUPS = "replica_groups={{0,1,2,3}}"
GATHERED = f"bf16[{4 * SIZE},{SIZE}]{{1,0:T(8,128)(2,1)S(1)}}"
GATHER_SECONDS = 3 * MATRIX_BYTES / (2 * V5E.link_bandwidth) + 2 * HOP


def test_a_collective_waits_or_is_hidden() -> None:
    waits = priced(f"%g = {GATHERED} all-gather(%v), {GROUPS}", f"%b = {DOT}")
    assert math.isclose(waits.seconds, GATHER_SECONDS + PRODUCT)
    assert math.isclose(waits.exposed_collective_seconds, GATHER_SECONDS)
    assert waits.collective_bytes == 3 * MATRIX_BYTES
    start = f"%g = ({IN_VMEM}, {GATHERED}) all-gather-start(%v), {GROUPS}"
    hidden = priced(start, f"%b = {DOT}")
    assert math.isclose(hidden.seconds, max(GATHER_SECONDS, PRODUCT))
    assert math.isclose(hidden.seconds_without_overlap, GATHER_SECONDS + PRODUCT)
    assert hidden.exposed_collective_seconds == 0


def test_the_links_that_the_compiler_says_it_uses_are_counted() -> None:
    told = 'backend_config={"collective_algorithm_config":{"debug":"colors:4 dim_sizes:2,2"}}'
    found = priced(f"%g = {GATHERED} all-gather(%v), {GROUPS}, {told}")
    assert math.isclose(found.seconds, 3 * MATRIX_BYTES / (4 * V5E.link_bandwidth) + 2 * HOP)


def test_what_leaves_a_slice_takes_the_slow_way() -> None:
    found = priced(f"%g = {GATHERED} all-gather(%v), {GROUPS}", devices_per_slice=2)
    assert math.isclose(found.seconds, 3 * MATRIX_BYTES / V5E.slow_bandwidth + BETWEEN_SLICES)


def test_what_hosts_send_between_slices_takes_the_slow_way_behind_other_work() -> None:
    send = (
        f"%s = ({MATRIX}, u32[]{{:S(2)}}, token[]) send(%a, %t), is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    found = priced("%t = token[] after-all()", send, f"%b = {DOT}", devices_per_slice=4)
    seconds = MATRIX_BYTES / V5E.slow_bandwidth + BETWEEN_SLICES
    assert math.isclose(found.seconds, seconds) and seconds > PRODUCT
    assert math.isclose(found.seconds_without_overlap, seconds + PRODUCT)
    assert (found.read, found.written) == (2 * MATRIX_BYTES, MATRIX_BYTES)  # with the product's


KERNEL = f'%k.1 = {MATRIX} custom-call(%a), custom_call_target="tpu_custom_call"'


def test_a_kernel_takes_the_flops_that_it_is_said_to_do() -> None:
    given = priced(KERNEL, kernels={"k": 1e12, "other": 1e15}, kernel_efficiency=0.5)
    assert math.isclose(given.seconds, 1e12 / (0.5 * V5E.peak))
    assert (given.flops, given.unpriced) == (1e12, ())
    asked = priced(KERNEL, kernels=lambda instruction: 2e12, kernel_efficiency=0.5)
    assert math.isclose(asked.seconds, 2 * given.seconds)
    itself = priced(KERNEL + ', backend_config={"cost_estimate":{"flops":"3000000000000"}}')
    assert itself.flops == 3e12
    unknown = priced(KERNEL)
    assert unknown.unpriced == ("k",)
    assert math.isclose(unknown.seconds, 2 * MATRIX_BYTES / STREAM)


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
    whole = estimate(program, V5E)
    outside = 2 * MATRIX_BYTES / STREAM
    assert math.isclose(whole.seconds, 5 * PRODUCT + outside)
    by_depth = {len(nest): seconds for nest, seconds in whole.by_loop.items()}
    assert math.isclose(by_depth[0], outside) and math.isclose(by_depth[1], 5 * PRODUCT)
    inside = estimate(program, V5E, within=lambda loop: loop.depth == 0, trips=once)
    assert math.isclose(inside.seconds, 5 * PRODUCT)
    assert inside.written == 5 * MATRIX_BYTES


def test_an_estimate_says_what_it_rests_on() -> None:
    found = priced(f"%b = {DOT}")
    for figure in ("197 TFLOP/s", "820 GB/s", "1.5 GHz", "45 GB/s"):
        assert figure in found.method
    assert "35 %" in found.error


def test_a_gpu_has_no_cycles_and_starts_every_kernel() -> None:
    chip = CHIPS["h200"]
    text = one_dot("bf16", 64)
    found = estimate(read_program(text), chip)
    assert found.compiler_seconds is None and "likely too short" in found.error
    assert found.seconds == chip.launch > found.roofline_seconds
    assert "no kernel shorter than 2 microseconds" in found.method and "GHz" not in found.method


def test_a_gpu_has_half_the_rate_for_products_of_fp32() -> None:
    chip = CHIPS["h200"]
    narrow, wide = (estimate(read_program(one_dot(kind, SIZE)), chip) for kind in ("bf16", "f32"))
    assert math.isclose(narrow.seconds, 2 * SIZE**3 / chip.peak)
    assert wide.flops == narrow.flops and math.isclose(wide.seconds, 2 * narrow.seconds)


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
