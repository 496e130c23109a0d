"""What a compiled program will do: bounds of its time, its traffic, and its decode loop.

All of this is read from the compiler's text, which a new compiler may print in another way. So the
reading is checked, and where it may be wrong a program has no time, and the reason is said.
"""

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from rmr1_jax.planning.cache_copies import copies
from rmr1_jax.planning.chips import Chip
from rmr1_jax.planning.collectives import collectives
from rmr1_jax.planning.compiled import Compiled, compile_ahead
from rmr1_jax.planning.hlo import Instruction, Program, Shape, read_program
from rmr1_jax.planning.hlo_flops import dot_flops, kernel_name, stated_flops
from rmr1_jax.planning.hlo_walk import Loop
from rmr1_jax.planning.recipe_programs import Planned
from rmr1_jax.planning.time_bounds import TimeBounds, time_bounds

UNREADABLE = (ValueError, KeyError, IndexError, AttributeError, AssertionError)
"""What reading a text raises that is printed in another way."""
LEAST_WORK = 0.9
"""Of the FLOPs that the objective needs. A program that seems to do less was misread."""


@dataclass(frozen=True)
class Transfers:
    """All collectives of one kind in one run of a program."""

    count: float
    bytes: float
    """That a device sends."""
    in_decode_loop: float
    """Bytes of them in one decode step."""
    between_slices: float
    """Bytes of them that leave a slice, or a host of GPUs."""


@dataclass(frozen=True)
class DecodeStep:
    """One round of the decode loop on one chip."""

    fastest: float
    slowest: float
    """Seconds."""
    bytes: float
    ideal_bytes: float
    """Weights, and live keys and values, once."""
    cache_copies: int

    @property
    def bytes_over_ideal(self) -> float:
        return self.bytes / self.ideal_bytes


@dataclass(frozen=True)
class Analysis:
    """Of a program that the compiler accepted."""

    bounds: TimeBounds
    transfers: dict[str, Transfers]
    decode: DecodeStep | None
    doubts: tuple[str, ...] = ()
    """Why what was read of it may be wrong; then it has no time."""

    def utilisation(self, planned: Planned, chip: Chip, devices: int) -> tuple[float, float] | None:
        """Model FLOPs utilisation, at worst and at best: useful arithmetic over what the chips
        could do in that time. None where there is no time."""
        if self.doubts or not planned.useful_flops:
            return None
        share = planned.useful_flops / (chip.peak * devices)
        return share / self.bounds.slowest, share / self.bounds.fastest


NOTHING = TimeBounds(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, ())


def analyse(
    compiled: Compiled, chip: Chip, devices: int, *, devices_per_slice: int | None = None
) -> Analysis:
    """Read a compiled program for `devices` of a chip. Raises ValueError if it was not compiled."""
    if not compiled.text:
        raise ValueError(f"{compiled.planned.name} was not compiled")
    try:
        return _analyse(compiled, chip, devices, devices_per_slice)
    except UNREADABLE as error:
        doubt = f"its text cannot be read ({type(error).__name__}: {error})"
        return Analysis(NOTHING, {}, None, (doubt,))


def _analyse(
    compiled: Compiled, chip: Chip, devices: int, devices_per_slice: int | None
) -> Analysis:
    planned, program = compiled.planned, read_program(compiled.text)
    measure = partial(
        time_bounds,
        program,
        chip,
        kernels=partial(_kernel_flops, planned, program),
        reads=partial(_share_read, planned),
        devices_per_slice=devices_per_slice,
        branches=lambda conditional: _branch(program, conditional),
    )
    whole = measure(trips=planned.trips)
    found: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
    for one in collectives(program, planned.trips):
        sums = found[one.kind]
        sums[0] += one.times
        sums[1] += one.times * one.wire_bytes
        if any(map(is_decode_loop, one.loops)) and planned.decode:
            sums[2] += one.times * one.wire_bytes / planned.decode.steps
        if devices_per_slice and one.crosses(devices_per_slice):
            sums[3] += one.times * one.wire_bytes
    transfers = {kind: Transfers(*sums) for kind, sums in sorted(found.items())}
    doubts = tuple(_doubts(planned, program, whole, devices))
    return Analysis(whole, transfers, _decode_step(planned, program, measure), doubts)


def _doubts(planned: Planned, program: Program, whole: TimeBounds, devices: int) -> list[str]:
    """What speaks against the reading of a program."""
    found = []
    if program.unread:
        found.append(f"{program.unread} lines of its text are no instruction that is known")
    if whole.unstated:
        found.append(f"nothing states the FLOPs of {', '.join(whole.unstated)}")
    needed = planned.useful_flops / devices
    if whole.flops < LEAST_WORK * needed:
        found.append(
            f"{whole.flops:.3g} FLOPs were counted of {needed:.3g} that the objective needs"
        )
    if planned.useful_flops and not whole.read:
        found.append("no byte of memory was counted")
    return found


SIZE, LAYERS = 1024, 3


@cache
def check_reader(device: Any) -> str:
    """What is wrong with the count of a known product's FLOPs, compiled for a device; else ""."""
    matrices = jax.ShapeDtypeStruct(
        (LAYERS, SIZE, SIZE), jnp.bfloat16, sharding=SingleDeviceSharding(device)
    )
    product = jax.jit(lambda w: jax.lax.scan(lambda x, m: (x @ m, None), w[0], w)[0])
    text = compile_ahead(Planned("a known product", lambda: product.lower(matrices), 1)).text
    known, found = LAYERS * 2 * SIZE**3, None
    with suppress(*UNREADABLE):
        found = dot_flops(read_program(text))
    if found == known:
        return ""
    return f"a known product of {known:.4g} FLOPs was counted as {found or 0:.4g}"


def is_decode_loop(loop: Loop) -> bool:
    """The loop that writes a token for every slot (`sampling/decode_loop.py`)."""
    return loop.op_name.endswith("decode/while")


def _decode_step(planned: Planned, program: Program, measure: Any) -> DecodeStep | None:
    if planned.decode is None:
        return None

    def once(loop: Loop) -> float | None:
        return 1.0 if is_decode_loop(loop) or loop.depth == 0 else planned.trips(loop)

    step: TimeBounds = measure(trips=once, within=is_decode_loop)
    copied = copies(
        program,
        planned.decode.cache_bytes / 2,
        within=is_decode_loop,
        elements=planned.decode.live,
    )
    return DecodeStep(
        fastest=step.fastest,
        slowest=step.slowest,
        bytes=step.read + step.written,
        ideal_bytes=planned.decode.ideal_bytes,
        cache_copies=len(copied),
    )


def _kernel_flops(planned: Planned, program: Program, call: Instruction) -> float | None:
    """Of what its author states, what the assumed data take; None where nothing is stated."""
    stated = stated_flops(call)
    if stated is None:
        return None
    operands = program.computations[call.computation].inputs(call)
    met = min((_share_read(planned, call, operand) for operand in operands), default=1.0)
    return planned.attention * met * stated


def _share_read(planned: Planned, call: Instruction, operand: Shape) -> float:
    """Of a cache the blocks that hold something; of other operands all."""
    if planned.decode is None or not kernel_name(call).startswith("decode_attention"):
        return 1.0
    return planned.decode.live.get(operand.elements, 1.0)


def _branch(program: Program, conditional: Instruction) -> tuple[float, ...] | None:
    """Nothing is truncated in training, so of that conditional the way past it is taken."""
    if "/truncate/" not in conditional.op_name:
        return None
    sizes = [len(program.computations[name].instructions) for name in conditional.branches]
    return tuple(float(i == sizes.index(min(sizes))) for i in range(len(sizes)))
