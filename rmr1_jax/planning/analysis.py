"""What a compiled program will do: its time, its traffic, and what goes on in its decode loop."""

from collections import defaultdict
from dataclasses import dataclass
from functools import partial

from rmr1_jax.planning.chips import Chip
from rmr1_jax.planning.collectives import collectives
from rmr1_jax.planning.compiled import Compiled
from rmr1_jax.planning.copies import copies
from rmr1_jax.planning.estimate import (
    BANDWIDTH_EFFICIENCY,
    KERNEL_EFFICIENCY,
    Estimate,
    estimate,
)
from rmr1_jax.planning.hlo import Instruction, Program, Shape, read_program
from rmr1_jax.planning.hlo_flops import kernel_name, stated_flops
from rmr1_jax.planning.hlo_walk import Loop
from rmr1_jax.planning.recipe_programs import Planned

# What the attention kernels reach of a chip's peak: cycles of the matrix units over bundles of
# instructions in the compiled kernels (docs/decisions/027); at most 90 %.
ATTENTION_EFFICIENCY = {
    "v5e": {"flash_forward": 0.78, "flash_backward": 0.9},
    "v5p": {"flash_forward": 0.83, "flash_backward": 0.9},
    "v6e": {"flash_forward": 0.26, "flash_backward": 0.54},
}


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

    seconds: float
    bytes: float
    ideal_bytes: float
    """Weights, and live keys and values, once."""
    roofline_seconds: float
    """Of the ideal bytes at the chip's bandwidth."""
    cache_copies: int

    @property
    def bytes_over_ideal(self) -> float:
        return self.bytes / self.ideal_bytes

    @property
    def seconds_over_roofline(self) -> float:
        return self.seconds / self.roofline_seconds


@dataclass(frozen=True)
class Analysis:
    """Of a program that the compiler accepted."""

    estimate: Estimate
    transfers: dict[str, Transfers]
    decode: DecodeStep | None

    def utilisation(self, planned: Planned, chip: Chip, devices: int) -> float:
        """Model FLOPs utilisation: useful arithmetic over what the chips could do in that time."""
        return planned.useful_flops / (self.estimate.seconds * chip.peak * devices)


def analyse(compiled: Compiled, chip: Chip, *, devices_per_slice: int | None = None) -> Analysis:
    """Read a compiled program. Raises ValueError for one that did not fit."""
    if not compiled.text:
        raise ValueError(f"{compiled.planned.name} was not compiled")
    planned, program = compiled.planned, read_program(compiled.text)
    whole = estimate(
        program,
        chip,
        trips=planned.trips,
        kernels=partial(_kernel_flops, planned, program),
        reads=partial(_share_read, planned),
        kernel_efficiency=ATTENTION_EFFICIENCY.get(chip.name, KERNEL_EFFICIENCY),
        devices_per_slice=devices_per_slice,
        branches=lambda conditional: _branch(program, conditional),
    )
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
    return Analysis(whole, transfers, _decode_step(planned, program, chip, devices_per_slice))


def is_decode_loop(loop: Loop) -> bool:
    """The loop that writes a token for every slot (`sampling/decode_loop.py`)."""
    return loop.op_name.endswith("decode/while")


def _decode_step(
    planned: Planned, program: Program, chip: Chip, devices_per_slice: int | None
) -> DecodeStep | None:
    if planned.decode is None:
        return None

    def once(loop: Loop) -> float | None:
        return 1.0 if is_decode_loop(loop) or loop.depth == 0 else planned.trips(loop)

    step = estimate(
        program,
        chip,
        trips=once,
        kernels=partial(_kernel_flops, planned, program),
        reads=partial(_share_read, planned),
        devices_per_slice=devices_per_slice,
        within=is_decode_loop,
        branches=lambda conditional: _branch(program, conditional),
    )
    ideal = planned.decode.ideal_bytes
    copied = copies(
        program,
        planned.decode.cache_bytes / 2,
        within=is_decode_loop,
        elements=planned.decode.live,
    )
    return DecodeStep(
        seconds=step.seconds,
        bytes=step.read + step.written,
        ideal_bytes=ideal,
        roofline_seconds=ideal / (chip.hbm_bandwidth * BANDWIDTH_EFFICIENCY),
        cache_copies=len(copied),
    )


def _kernel_flops(planned: Planned, program: Program, call: Instruction) -> float | None:
    """Of what its author says, what the data that is assumed takes; None where he says nothing."""
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
    """Nothing is truncated in training: of that conditional, the way past it is taken."""
    if "/truncate/" not in conditional.op_name:
        return None
    sizes = [len(program.computations[name].instructions) for name in conditional.branches]
    return tuple(float(i == sizes.index(min(sizes))) for i in range(len(sizes)))
