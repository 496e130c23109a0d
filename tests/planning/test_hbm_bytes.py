"""Bytes to and from HBM, and copies, in programs small enough to count by hand."""

import pytest

from rmr1_jax.planning.hbm_bytes import HbmTraffic, Traffic, copies
from rmr1_jax.planning.hlo import Program, read_program

MIB = 2**20


def traffic_of_root(text: str) -> tuple[Program, Traffic]:
    program = read_program(text)
    return program, HbmTraffic(program).of(program.entry.root)


def test_what_lies_in_vmem_costs_no_bandwidth() -> None:
    _, found = traffic_of_root("""\
ENTRY %main (a: f32[1024,1024], b: f32[1024,1024]) -> f32[1024,1024] {
  %a = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  %b = f32[1024,1024]{1,0:T(8,128)S(1)} parameter(1)
  ROOT %c = f32[1024,1024]{1,0:T(8,128)S(1)} add(%a, %b)
}
""")
    assert found == Traffic(4 * MIB, 0)


def test_a_fusion_reads_the_slices_that_it_takes() -> None:
    _, found = traffic_of_root("""\
%fused (stack: bf16[28,1024,1024], i: s32[]) -> f32[1024,1024] {
  %stack = bf16[28,1024,1024]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %wide = f32[28,1024,1024]{2,1,0} convert(%stack)
  %slice = f32[1,1024,1024]{2,1,0} dynamic-slice(%wide, %i, %zero, %zero), \
dynamic_slice_sizes={1,1024,1024}
  ROOT %flat = f32[1024,1024]{1,0} bitcast(%slice)
}

ENTRY %main (a: bf16[28,1024,1024], i.1: s32[]) -> f32[1024,1024] {
  %a = bf16[28,1024,1024]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  ROOT %b = f32[1024,1024]{1,0} fusion(%a, %i.1), kind=kLoop, calls=%fused
}
""")
    assert (found.read, found.written) == (2 * MIB + 4, 4 * MIB)


def test_a_fusion_that_is_only_started_reads_and_makes_the_same() -> None:
    _, found = traffic_of_root("""\
%fused (stack: bf16[28,1024,1024], i: s32[]) -> bf16[1,1024,1024] {
  %stack = bf16[28,1024,1024]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = bf16[1,1024,1024]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), \
dynamic_slice_sizes={1,1024,1024}
}

ENTRY %main (a: bf16[28,1024,1024], i.1: s32[]) -> bf16[1,1024,1024] {
  %a = bf16[28,1024,1024]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  ROOT %b = ((bf16[28,1024,1024]{2,1,0}, s32[]), bf16[1,1024,1024]{2,1,0}, u32[]) \
fusion-start(%a, %i.1), kind=kLoop, calls=%fused
}
""")
    assert (found.read, found.written) == (2 * MIB + 4, 2 * MIB)


def test_the_room_that_a_gpu_library_works_in_is_no_result() -> None:
    _, found = traffic_of_root("""\
ENTRY %main (a: bf16[1024,1024], b: bf16[1024,1024]) -> (bf16[1024,1024], s8[33554432]) {
  %a = bf16[1024,1024]{1,0} parameter(0)
  %b = bf16[1024,1024]{1,0} parameter(1)
  ROOT %c = (bf16[1024,1024]{1,0}, s8[33554432]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$lt$matmul"
}
""")
    assert (found.read, found.written) == (4 * MIB, 2 * MIB)


# A cache of 8 MiB; what changes is what the fusion does with the column that is written.
UPDATE = """\
%fused (cache: bf16[4,8192,128], column: bf16[4,1,128], i: s32[]) -> RESULT {
  %cache = bf16[4,8192,128]{2,1,0} parameter(0)
  %column = bf16[4,1,128]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  LAST
}

ENTRY %main (a: bf16[4,8192,128], b: bf16[4,1,128], i.1: s32[]) -> RESULT {
  %a = bf16[4,8192,128]{2,1,0} parameter(0)
  %b = bf16[4,1,128]{2,1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  ROOT %c = RESULT fusion(%a, %b, %i.1), kind=kLoop, calls=%fused
}
"""
IN_PLACE = (
    "ROOT %new = bf16[4,8192,128]{2,1,0} dynamic-update-slice(%cache, %column, %zero, %i, %zero)"
)
TURNED = """%new = bf16[4,8192,128]{2,1,0} dynamic-update-slice(%cache, %column, %zero, %i, %zero)
  ROOT %turned = bf16[4,128,8192]{2,1,0} transpose(%new), dimensions={0,2,1}"""


def test_an_update_in_place_moves_the_update() -> None:
    text = UPDATE.replace("LAST", IN_PLACE).replace("RESULT", "bf16[4,8192,128]{2,1,0}")
    program, found = traffic_of_root(text)
    assert found == Traffic(1024 + 4, 1024)
    assert copies(program, MIB) == []


def test_an_update_that_is_written_elsewhere_moves_everything() -> None:
    text = UPDATE.replace("LAST", TURNED).replace("RESULT", "bf16[4,128,8192]{2,1,0}")
    program, found = traffic_of_root(text)
    assert (found.read, found.written) == (8 * MIB + 1024 + 4, 8 * MIB)
    (copy,) = copies(program, MIB)
    assert (copy.bytes, copy.shape.dims) == (8 * MIB, (4, 128, 8192))
    assert copies(program, MIB, elements={7}) == []


@pytest.mark.parametrize(
    ("source", "destination", "expected", "copied"),
    [
        ("", "S(1)", Traffic(8 * MIB, 0), 0),
        ("S(1)", "", Traffic(0, 8 * MIB), 1),
        ("", "", Traffic(8 * MIB, 8 * MIB), 1),
    ],
)
def test_a_prefetch_is_no_copy_but_writing_back_is(
    source: str, destination: str, expected: Traffic, copied: int
) -> None:
    shape = "bf16[4,8192,128]{{2,1,0:T(8,128)(2,1){}}}"
    a, b = shape.format(source), shape.format(destination)
    text = f"""\
ENTRY %main (a: bf16[4,8192,128]) -> bf16[4,8192,128] {{
  %a = {a} parameter(0)
  %start = ({b}, {a}, u32[]{{:S(2)}}) copy-start(%a)
  ROOT %done = {b} copy-done(%start)
}}
"""
    program = read_program(text)
    memory = HbmTraffic(program)
    assert memory.of(program.entry["start"]) == expected
    assert memory.of(program.entry.root) == Traffic()
    assert len(copies(program, MIB)) == copied


def test_a_whole_layer_put_back_into_a_stack_is_a_copy() -> None:
    program, found = traffic_of_root("""\
ENTRY %main (a: bf16[28,1048576], b: bf16[1,1048576], i: s32[]) -> bf16[28,1048576] {
  %a = bf16[28,1048576]{1,0} parameter(0)
  %b = bf16[1,1048576]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %c = bf16[28,1048576]{1,0} dynamic-update-slice(%a, %b, %i, %zero)
}
""")
    assert found == Traffic(2 * MIB, 2 * MIB)
    assert [c.shape.dims for c in copies(program, MIB)] == [(1, 1048576)]
