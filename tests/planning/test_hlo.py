"""Reading a compiled program: its instructions, what loops do, what is computed and moved."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.planning import hlo_walk
from rmr1_jax.planning.hlo import HBM, VMEM, Program, read_program, read_shapes
from rmr1_jax.planning.hlo_flops import dot_flops, kernel_name
from rmr1_jax.planning.hlo_walk import Loop, loops, once, walk

KERNEL = """\
HloModule jit_f, is_scheduled=true

ENTRY %main.4_spmd (param: bf16[4,2048,128]) -> f32[4,2048] {
  %param = bf16[4,2048,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %splash_mha_fwd.1 = (bf16[4,2048,128]{2,1,0:T(8,128)(2,1)S(1)}, f32[4,2048]{1,0:T(4,128)}) \
custom-call(%param), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512,
  \\"layout\\": {1, 0}}"
}
}}, metadata={op_name="jit(f)/splash" stack_frame_id=6}, backend_config={"custom_call_config":{}}
  ROOT %gte.2 = f32[4,2048]{1,0:T(4,128)} get-tuple-element(%splash_mha_fwd.1), index=1
}
"""


def test_metadata_with_line_breaks_and_braces_hides_nothing() -> None:
    entry = read_program(KERNEL).entry
    assert [i.opcode for i in entry] == ["parameter", "custom-call", "get-tuple-element"]
    kernel = entry["splash_mha_fwd.1"]
    assert (kernel.target, kernel.op_name) == ("tpu_custom_call", "jit(f)/splash")
    assert entry.root.name == "gte.2"
    assert kernel_name(kernel) == "splash_mha_fwd"
    assert [s.dims for s in kernel.shapes] == [(4, 2048, 128), (4, 2048)]
    assert [s.space for s in kernel.shapes] == [VMEM, HBM]


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no entry computation"):
        read_program("HloModule empty\n")


@pytest.mark.parametrize(
    ("text", "plain", "stored"),
    [
        ("f32[]", 4, 4),
        ("bf16[5,100]{1,0:T(8,128)(2,1)}", 1000, 8 * 128 * 2),
        ("bf16[5,100]{0,1:T(8,128)(2,1)}", 1000, 104 * 128 * 2),
        ("pred[3,7]{1,0}", 21, 21),
        ("s4[16,128]{1,0:T(8,128)E(4)}", 1024, 1024),
        ("f8e4m3fn[256]{0:T(256)}", 256, 256),
        ("s32[]{:T(128)}", 4, 4),
        ("token[]", 0, 0),
    ],
)
def test_bytes_are_those_of_the_type_and_of_whole_tiles(
    text: str, plain: float, stored: float
) -> None:
    (shape,) = read_shapes(text)
    assert (shape.bytes, shape.stored) == (plain, stored)


@given(st.lists(st.tuples(st.sampled_from(["f32", "bf16", "s8"]), st.lists(st.integers(1, 9)))))
def test_tuples_of_shapes_keep_their_order(arrays: list[tuple[str, list[int]]]) -> None:
    text = ", ".join(f"{dtype}[{','.join(map(str, dims))}]" for dtype, dims in arrays)
    assert [(s.dtype, list(s.dims)) for s in read_shapes(f"({text})")] == arrays


def program_of(function: Callable[..., Any], *shapes: Any) -> Program:
    """As the compiler of this machine makes it."""
    return read_program(jax.jit(function).lower(*shapes).compile().as_text() or "")


def array(*dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def scanned(x: Any, weights: Any) -> Any:
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_products_in_a_scan_are_counted_once_a_layer() -> None:
    program = program_of(scanned, array(48, 64), array(5, 64, 64))
    assert [loop.trips for loop in loops(program)] == [5]
    assert dot_flops(program) == 2 * 48 * 64 * 64 * 5


CUBLAS = """\
ENTRY %main (a: bf16[48,64], b: bf16[64,96]) -> (bf16[48,96], s8[1024]) {
  %a = bf16[48,64]{1,0} parameter(0)
  %b = bf16[64,96]{1,0} parameter(1)
  ROOT %c = (bf16[48,96]{1,0}, s8[1024]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}
"""


def test_a_product_that_a_gpu_library_computes_is_counted() -> None:
    assert dot_flops(read_program(CUBLAS)) == 2 * 48 * 64 * 96


def test_the_backward_pass_of_a_scan_is_a_loop_as_long() -> None:
    gradient = jax.grad(lambda x, w: scanned(x, w).sum(), argnums=(0, 1))
    program = program_of(gradient, array(48, 64), array(5, 64, 64))
    assert [loop.trips for loop in loops(program)] == [5, 5]
    assert dot_flops(program) == 3 * 2 * 48 * 64 * 64 * 5


def nested(x: Any, w: Any, rounds: Any) -> Any:
    def outer(i: Any, x: Any) -> Any:
        return jax.lax.fori_loop(0, 3, lambda j, x: x @ w + i, x)

    return jax.lax.fori_loop(0, rounds, outer, x)


def test_a_loop_that_depends_on_data_has_no_count_until_one_is_given() -> None:
    rounds = jax.ShapeDtypeStruct((), jnp.int32)
    program = program_of(nested, array(48, 64), array(64, 64), rounds)
    assert [(loop.depth, loop.trips) for loop in loops(program)] == [(0, None), (1, 3)]
    with pytest.raises(ValueError, match=r"jit\(nested\)/while\) depends on data"):
        dot_flops(program)
    product = 2 * 48 * 64 * 64
    assert dot_flops(program, once) == 3 * product

    def by_depth(loop: Loop) -> float:
        return [10.0, 1e9][loop.depth]

    assert dot_flops(program, by_depth) == 10 * 3 * product


def test_loops_after_one_another_are_listed_each_once() -> None:
    def several(x: Any, rounds: Any) -> Any:
        for add in range(6):
            x = jax.lax.fori_loop(0, rounds, lambda i, x, add=add: jnp.tanh(x) + add, x)
        return x

    program = program_of(several, array(8), jax.ShapeDtypeStruct((), jnp.int32))
    assert len({loop.instruction.name for loop in loops(program)}) == 6
    assert len(list(loops(program))) == 6


LOOP = """\
%cond (state: (s32[], s32[], f32[8])) -> pred[] {
  %state = (s32[], s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %n = s32[] get-tuple-element(%state), index=1
  ROOT %less = pred[] compare(%i, %n), direction=DIRECTION
}

%increment (value: s32[]) -> s32[] {
  %value = s32[] parameter(0)
  %step = s32[] constant(STEP)
  ROOT %sum = s32[] add(%value, %step)
}

%body (state.1: (s32[], s32[], f32[8])) -> (s32[], s32[], f32[8]) {
  %state.1 = (s32[], s32[], f32[8]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %n.1 = s32[] get-tuple-element(%state.1), index=1
  %copied = s32[] copy(%n.1)
  %x.1 = f32[8]{0} get-tuple-element(%state.1), index=2
  %next = s32[] fusion(%i.1), kind=kLoop, calls=%increment
  ROOT %out = (s32[], s32[], f32[8]) tuple(%next, %copied, %x.1)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %start = s32[] constant(START)
  %limit = s32[] constant(LIMIT)
  %init = (s32[], s32[], f32[8]) tuple(%start, %limit, %x)
  %loop = (s32[], s32[], f32[8]) while(%init), condition=%cond, body=%body
  ROOT %y = f32[8]{0} get-tuple-element(%loop), index=2
}
"""


@pytest.mark.parametrize(
    ("start", "limit", "step", "direction", "trips"),
    [
        (0, 8, 1, "LT", 8),
        (0, 8, 2, "LT", 4),
        (1, 8, 2, "LE", 4),
        (8, 0, -3, "GT", 3),
        (8, 0, -4, "GE", 3),
        (0, 9, 3, "NE", 3),
        (5, 5, 1, "LT", 0),
        (0, 8, 1, "EQ", 0),
        (8, 8, 1, "EQ", 1),
    ],
)
def test_trip_counts_follow_from_start_limit_and_step(
    start: int, limit: int, step: int, direction: str, trips: int
) -> None:
    text = LOOP.replace("START", str(start)).replace("LIMIT", str(limit))
    text = text.replace("STEP", str(step)).replace("DIRECTION", direction)
    (loop,) = loops(read_program(text))
    assert loop.trips == trips


def test_a_loop_that_does_not_end_is_misread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hlo_walk, "_MOST_TRIPS", 100)
    text = LOOP.replace("START", "0").replace("LIMIT", "8")
    text = text.replace("STEP", "-1").replace("DIRECTION", "LT")
    with pytest.raises(ValueError, match="loop loop does not end"):
        list(loops(read_program(text)))


def test_what_the_compiler_says_of_a_loop_goes_first() -> None:
    text = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"12"}}')
    (loop,) = loops(read_program(text))
    assert loop.trips == 12


BRANCHES = """\
%work (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %b = f32[8,8]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %c = f32[8,8]{1,0} dot(%b, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%nothing (d: f32[8,8]) -> f32[8,8] {
  ROOT %d = f32[8,8]{1,0} parameter(0)
}

ENTRY %main (p: pred[], x: f32[8,8]) -> f32[8,8] {
  %p = pred[] parameter(0)
  %x = f32[8,8]{1,0} parameter(1)
  ROOT %y = f32[8,8]{1,0} conditional(%p, %x, %x), branch_computations={%work, %nothing}
}
"""


def test_of_a_conditional_the_branch_that_works_is_counted_unless_shares_are_given() -> None:
    program = read_program(BRANCHES)
    assert dot_flops(program) == 2 * 2 * 8**3
    shares = list(walk(program, branches=lambda conditional: (0.25, 0.75)))
    assert sum(step.times for step in shares if step.instruction.opcode == "dot") == 0.5


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_convolution_counts_products_of_entries_that_exist(dilation: int) -> None:
    def convolve(image: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 3), ((1, 1), (2, 1)), (1, dilation), (2, 1)
        )

    program = program_of(convolve, array(4, 8, 16, 16), array(6, 8, 3, 3))
    products = convolve(jnp.ones((4, 8, 16, 16)), jnp.ones((6, 8, 3, 3))).sum()
    assert dot_flops(program) == 2 * products


WINDOWED = """\
ENTRY %main (a: bf16[1,4096,1,224], b: bf16[28,128,1,224]) -> bf16[4096,28,128,1] {
  %a = bf16[1,4096,1,224]{1,3,2,0} parameter(0)
  %b = bf16[28,128,1,224]{1,3,2,0} parameter(1)
  ROOT %c = bf16[4096,28,128,1]{2,0,3,1} convolution(%a, %b), \
window={size=28x1 pad=27_27x0_0 rhs_reversal=1x0}, dim_labels=1b0f_0o1i->b0f1
}
"""


def test_a_product_written_as_a_padded_convolution_counts_as_the_product() -> None:
    assert dot_flops(read_program(WINDOWED)) == 2 * 4096 * 28 * 128 * 224
