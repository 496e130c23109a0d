"""What a compiled program will do: bounds of its time, its traffic, and its decode loop.

All of this is read from the compiler's text, which a new compiler may print in another way. So the
reading is checked, and where it may be wrong a program has no time, and the reason is said.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from rmr1_jax.planning.chips import Chip
from rmr1_jax.planning.collectives import Collective, collectives_of
from rmr1_jax.planning.compiled import Compiled, Planned, compile_ahead
from rmr1_jax.planning.hbm_bytes import HbmTraffic, Reads, copies
from rmr1_jax.planning.hlo import Instruction, Program, Shape, read_program
from rmr1_jax.planning.hlo_flops import (
    GPU_PASSES,
    TPU_PASSES,
    Costs,
    dot_flops,
    is_marker,
    kernel_name,
    stated_flops,
)
from rmr1_jax.planning.hlo_walk import Branches, Loop, Trips, unknown, walk

HOP = 1e-6  # seconds from one chip to the next
BETWEEN_SLICES = 1e-5

METHOD = (
    "Times are bounds at the data sheet's rates, never measured: at best the longest of "
    "arithmetic, memory and communication, at worst their sum. Chips reach less than their data "
    "sheets."
)

UNREADABLE = (ValueError, KeyError, IndexError, AttributeError, AssertionError)
"""What reading a text raises that is printed in another way."""
LEAST_WORK = 0.9
"""Of the FLOPs that the objective needs. A program that seems to do less was misread."""


@dataclass(frozen=True)
class TimeBounds:
    """What one run of a program needs of each device."""

    compute: float
    """Seconds of matrix products at the chip's peak, those of kernels included."""
    memory: float
    """Seconds of HBM traffic at its bandwidth."""
    communication: float
    """Seconds of all collectives, one after the other."""
    flops: float
    read: float
    written: float
    """Bytes of HBM."""
    unstated: tuple[str, ...] = ()
    """Kernels whose FLOPs nobody states: only their bytes are counted."""
    collectives: tuple[Collective, ...] = ()

    @property
    def sent(self) -> float:
        """Bytes that a device sends to others."""
        return sum(one.times * one.wire_bytes for one in self.collectives)

    @property
    def fastest(self) -> float:
        """Seconds if everything overlaps."""
        return max(self.compute, self.memory, self.communication)

    @property
    def slowest(self) -> float:
        """Seconds if nothing does."""
        return self.compute + self.memory + self.communication


def time_bounds(
    program: Program,
    chip: Chip,
    *,
    trips: Trips = unknown,
    kernels: Callable[[Instruction], float | None] = stated_flops,
    reads: Reads = lambda call, operand: 1.0,
    devices_per_slice: int | None = None,
    within: Callable[[Loop], bool] | None = None,
    branches: Branches = lambda conditional: None,
) -> TimeBounds:
    """The bounds of one run.

    Args:
      program: from `read_program`.
      chip: what it runs on, from `chips.CHIPS`.
      trips, branches: see `walk`.
      kernels: FLOPs of a custom call; None if they are not known.
      reads: what share of its operands a kernel reads; all by default.
      devices_per_slice: collectives that leave a slice (or GPU host) of this many devices take the
        slow network; by default there is one slice.
      within: count only what is in a loop for which this is true. With that loop's trips given as
        1, the result is that of one round.
    """
    costs = Costs(program, GPU_PASSES if chip.is_gpu else TPU_PASSES)
    traffic = HbmTraffic(program, reads)
    flops = bf16_flops = read = written = 0.0
    unstated: dict[str, None] = {}
    found: list[Collective] = []
    for step in walk(program, trips, branches):
        if within is not None and not any(within(loop) for loop in step.loops):
            continue
        instruction, times = step.instruction, step.times
        work = costs.of(instruction)
        own, weighed = work.flops, work.bf16_flops
        if instruction.opcode == "custom-call" and not is_marker(instruction) and not own:
            stated = kernels(instruction)
            if stated is None:
                unstated[kernel_name(instruction)] = None
            own = weighed = stated or 0.0
        moved = traffic.of(instruction)
        flops, bf16_flops = flops + times * own, bf16_flops + times * weighed
        read, written = read + times * moved.read, written + times * moved.written
        found += collectives_of(program, step)
    return TimeBounds(
        compute=bf16_flops / chip.peak,
        memory=(read + written) / chip.hbm_bandwidth,
        communication=sum(c.times * _seconds(c, chip, devices_per_slice) for c in found),
        flops=flops,
        read=read,
        written=written,
        unstated=tuple(unstated),
        collectives=tuple(found),
    )


def _seconds(collective: Collective, chip: Chip, devices_per_slice: int | None) -> float:
    """Of one collective, around a ring in both directions, or by a switch."""
    if devices_per_slice and collective.crosses(devices_per_slice):
        return collective.wire_bytes / chip.slow_bandwidth + BETWEEN_SLICES
    # Permutations come in pairs, one each way round (windowed einsums).
    used = min(chip.links, 2)
    direct = collective.kind == "collective-permute" or chip.links == 1
    hops = 1 if direct else collective.group_size // 2
    hops *= 2 if collective.kind == "all-reduce" else 1
    return collective.wire_bytes / (used * chip.link_bandwidth) + hops * HOP


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


NOTHING = TimeBounds(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


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
    for one in whole.collectives:
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
