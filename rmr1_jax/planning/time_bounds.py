"""How long a compiled program takes at best and at worst on a chip that is not here.

Nothing is measured, and nothing is assumed of the order in which a chip does things. A program
takes some time for its arithmetic at the chip's peak, some for its bytes at the bandwidth of its
memory, and some for what it sends. If all of that goes on at once, it takes the longest of the
three; if nothing does, their sum.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from rmr1_jax.planning.chips import Chip
from rmr1_jax.planning.collectives import Collective, collectives_of
from rmr1_jax.planning.hbm_bytes import HbmTraffic, Reads
from rmr1_jax.planning.hlo import Instruction, Program
from rmr1_jax.planning.hlo_flops import (
    GPU_PASSES,
    TPU_PASSES,
    Costs,
    is_marker,
    kernel_name,
    stated_flops,
)
from rmr1_jax.planning.hlo_walk import Branches, Loop, Trips, walk

HOP = 1e-6  # seconds from one chip to the next
BETWEEN_SLICES = 1e-5

METHOD = (
    "Times are bounds at the data sheet's rates, never measured: at best the longest of "
    "arithmetic, memory and communication, at worst their sum. Chips reach less than their data "
    "sheets."
)


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
    sent: float
    """Bytes that a device sends to others."""
    unstated: tuple[str, ...]
    """Kernels whose FLOPs nobody states: only their bytes are counted."""

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
    trips: Trips = None,
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
    flops = bf16_flops = read = written = sent = communication = 0.0
    unstated: dict[str, None] = {}
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
        for collective in collectives_of(program, step):
            sent += times * collective.wire_bytes
            communication += times * _seconds(collective, chip, devices_per_slice)
    return TimeBounds(
        compute=bf16_flops / chip.peak,
        memory=(read + written) / chip.hbm_bandwidth,
        communication=communication,
        flops=flops,
        read=read,
        written=written,
        sent=sent,
        unstated=tuple(unstated),
    )


def _seconds(collective: Collective, chip: Chip, devices_per_slice: int | None) -> float:
    """Of one collective, by the links that the compiler says it uses; else those of a ring."""
    if devices_per_slice and collective.crosses(devices_per_slice):
        return collective.wire_bytes / chip.slow_bandwidth + BETWEEN_SLICES
    links = re.search(r"\bcolors:(\d+)", collective.instruction.text)
    # Permutations come in pairs, one each way round (windowed einsums).
    used = min(chip.links, int(links.group(1)) if links else 2)
    sides = re.search(r"\bdim_sizes:([\d,]+)", collective.instruction.text)
    around = (
        sum(int(n) // 2 for n in sides.group(1).split(",") if n)
        if sides
        else collective.group_size // 2
    )
    if collective.kind == "collective-permute" or chip.links == 1:
        around = 1
    hops = 2 * around if collective.kind == "all-reduce" else around
    return collective.wire_bytes / (used * chip.link_bandwidth) + hops * HOP
