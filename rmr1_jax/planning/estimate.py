"""How long a compiled program would take on a chip that is not here.

Each instruction gets a roofline of its own; nothing was measured, and the result says what it rests
on and how far it may be off.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
from rmr1_jax.planning.hlo_walk import Branches, Loop, Step, Trips, walk
from rmr1_jax.planning.overlap import Schedule

# FLOPs of one execution of a kernel, by (the beginning of) its name, or from its instruction.
Kernels = Mapping[str, float] | Callable[[Instruction], float | None]

KERNEL_EFFICIENCY = 0.6  # of peak, of attention kernels
BANDWIDTH_EFFICIENCY = 0.9  # of the data sheet's, that long transfers reach
SLOW_READS = 3.0  # the compiler's cycles for what mostly reads are 2 to 4 times too many
HOP = 1e-6  # seconds from one chip to the next
BETWEEN_SLICES = 1e-5

ERROR = (
    "Within about 35 % for a whole step, less for comparing variants of one program; never "
    "measured on the hardware."
)
GPU_ERROR = (
    "On GPUs they are rooflines, and likely too short: kernels reach less than the peak, and their "
    "compiler says nothing of times; never measured on the hardware."
)


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run on each device, and what they are made of."""

    seconds: float
    """In the order of the program, transfers to VMEM going on beside what stands between their
    start and their end; asynchronous collectives hidden behind work as far as there is any."""
    seconds_without_overlap: float
    """Everything after everything else."""
    compiler_seconds: float | None
    """As `seconds`, by the compiler's cycles wherever it gives some: a second opinion. None where
    the compiler never does."""
    roofline_seconds: float
    """As `seconds`, at full peak and bandwidth: these instructions cannot be faster."""
    matmul_seconds: float
    """Of it, instructions with matrix products, and kernels with known FLOPs."""
    collective_seconds: float
    """All collectives, hidden or not."""
    exposed_collective_seconds: float
    """Those that nothing hides, at the best."""
    flops: float
    read: float
    written: float
    """Bytes of HBM."""
    collective_bytes: float
    """That a device sends."""
    by_loop: Mapping[tuple[Loop, ...], float]
    """Share of `seconds` by the nest of loops, inner loops apart; () is outside of all."""
    unpriced: tuple[str, ...]
    """Kernels whose FLOPs nobody gave: they are priced by their bytes alone."""
    method: str
    error: str


@dataclass
class _Nest:
    """Sums over what is executed in one nest of loops, in seconds."""

    expected: Schedule = field(default_factory=Schedule)
    compiler: Schedule = field(default_factory=Schedule)
    roofline: float = 0.0
    work: float = 0.0
    matmul: float = 0.0
    memory: float = 0.0  # the time HBM is busy, prefetches too
    prefetch: float = 0.0
    hidden: float = 0.0  # collectives that others can hide
    exposed: float = 0.0
    inner: list["_Nest"] = field(default_factory=list)

    def seconds(self, own: Callable[["_Nest"], float]) -> float:
        """With what is inside it."""
        within = own(self) + sum(nest.seconds(own) for nest in self.inner)
        return max(within, self.hidden + self.exposed)

    def by_schedule(self) -> float:
        return self.expected.whole()

    def by_compiler(self) -> float:
        return self.compiler.whole()

    def by_roofline(self) -> float:
        """Prefetches anywhere; work cannot be shorter than its traffic."""
        return max(self.roofline + self.exposed, BANDWIDTH_EFFICIENCY * self.memory)

    def by_itself(self) -> float:
        inner = sum(nest.seconds(_Nest.by_schedule) for nest in self.inner)
        return self.seconds(_Nest.by_schedule) - inner

    def start(self, name: str, seconds: float) -> None:
        self.prefetch += seconds
        for schedule in (self.expected, self.compiler):
            schedule.start(name, seconds)

    def end(self, name: str) -> None:
        for schedule in (self.expected, self.compiler):
            schedule.end(name)

    def run(self, expected: float, compiler: float, memory: float) -> None:
        """An instruction, by either account."""
        self.expected.run(expected, memory)
        self.compiler.run(compiler, memory)

    def wait(self, seconds: float, memory: float) -> None:
        """For a collective that nothing hides, and that needs the memory for a part of it."""
        self.exposed += seconds
        seconds = max(seconds, memory)
        self.run(seconds, seconds, memory)


def estimate(
    program: Program,
    chip: Chip,
    *,
    trips: Trips = None,
    kernels: Kernels | None = None,
    kernel_efficiency: float | Mapping[str, float] = KERNEL_EFFICIENCY,
    reads: Reads = lambda call, operand: 1.0,
    devices_per_slice: int | None = None,
    within: Callable[[Loop], bool] | None = None,
    branches: Branches = lambda conditional: None,
) -> Estimate:
    """The time of one run.

    Args:
      program: from `read_program`.
      chip: what it runs on, from `chips.CHIPS`; it should be what it was compiled for.
      trips, branches: see `walk`.
      kernels: FLOPs of Pallas kernels and other custom calls.
      kernel_efficiency: share of the chip's peak that these reach; by the beginnings of their
        names, if they differ.
      reads: what share of its operands a kernel reads; default: all of all.
      devices_per_slice: collectives that leave a slice (or GPU host) of so many devices take the
        slow way; default: there is one slice.
      within: count only what is in a loop of which this is true. With that loop's trips given as
        1, the result is that of one round of it.
    """
    pricer = _Pricer(program, chip, kernels, kernel_efficiency, reads, devices_per_slice)
    for step in walk(program, trips, branches):
        if within is None or any(within(loop) for loop in step.loops):
            pricer.add(step)
    return pricer.result()


def error_of(chip: Chip) -> str:
    """How far estimates for a chip may be off."""
    return GPU_ERROR if chip.is_gpu else ERROR


def _of_kernel(table: Mapping[str, float], name: str) -> float | None:
    """What a table says of a kernel by the beginning of its name; of several, the longest."""
    fitting = [begin for begin in table if name.startswith(begin)]
    return table[max(fitting, key=len)] if fitting else None


class _Pricer:
    def __init__(
        self,
        program: Program,
        chip: Chip,
        kernels: Kernels | None,
        kernel_efficiency: float | Mapping[str, float],
        reads: Reads,
        devices_per_slice: int | None,
    ):
        self.program, self.chip, self.kernels = program, chip, kernels
        self.kernel_efficiency, self.devices_per_slice = kernel_efficiency, devices_per_slice
        self.costs = Costs(program, GPU_PASSES if chip.is_gpu else TPU_PASSES)
        self.memory = HbmTraffic(program, reads)
        self.nests: dict[tuple[Loop, ...], _Nest] = defaultdict(_Nest)
        self.flops = self.read = self.written = self.sent = self.collectives = 0.0
        self.unpriced: dict[str, None] = {}

    def add(self, step: Step) -> None:
        nest, times = self.nests[step.loops], step.times
        instruction = step.instruction
        if instruction.opcode.endswith("-done"):
            nest.end(self._started_by(instruction))
            return
        traffic = self.memory.of(instruction)
        self.read += times * traffic.read
        self.written += times * traffic.written
        fastest = traffic.total / self.chip.hbm_bandwidth
        memory = times * fastest / BANDWIDTH_EFFICIENCY
        nest.memory += memory
        found = list(collectives_of(self.program, step))
        # A fusion that holds one has work of its own, which takes the memory.
        nothing_else = bool(found) and instruction.opcode != "fusion"
        for collective in found:
            seconds = times * self._collective(collective)
            self.sent += times * collective.wire_bytes
            self.collectives += seconds
            if collective.asynchronous:
                nest.hidden += seconds
            else:
                nest.wait(seconds, memory if nothing_else else 0.0)
        # The fusions that a GPU starts beside others share its memory and its units with them.
        if instruction.opcode.endswith("-start") and instruction.opcode != "fusion-start":
            nest.start(instruction.name, memory)
            return
        if nothing_else:
            return
        self._work(nest, instruction, times, fastest)

    def _work(
        self, nest: _Nest, instruction: Instruction, times: float, fastest_memory: float
    ) -> None:
        cost = self.costs.of(instruction)
        flops, products = cost.flops, cost.bf16_flops / self.chip.peak
        expected = products
        if instruction.opcode == "custom-call" and not is_marker(instruction) and not flops:
            flops = self._kernel(instruction)
            products = flops / self.chip.peak
            expected = products / self._efficiency(instruction)
        self.flops += times * flops
        roofline = max(products, fastest_memory)
        memory = fastest_memory / BANDWIDTH_EFFICIENCY
        expected = max(expected, memory)
        compiler = self._cycles(instruction)
        if compiler is not None:
            reads = fastest_memory > 0 and not flops
            expected = max(expected, compiler / SLOW_READS if reads else compiler)
        if expected:
            expected = max(expected, self.chip.launch)
        nest.roofline += times * roofline
        nest.work += times * expected
        by_compiler = expected if compiler is None else compiler
        nest.run(times * expected, times * by_compiler, times * memory)
        if flops:
            nest.matmul += times * expected

    def _started_by(self, done: Instruction) -> str:
        """The name of the start that an end belongs to."""
        computation = self.program.computations[done.computation]
        name = done.operands[0]
        while computation[name].opcode.endswith("-update"):
            name = computation[name].operands[0]
        return name

    def _cycles(self, instruction: Instruction) -> float | None:
        """Seconds by the compiler's estimate."""
        if self.chip.clock is None or not instruction.cycles:
            return None
        return instruction.cycles / self.chip.clock

    def _efficiency(self, instruction: Instruction) -> float:
        if isinstance(self.kernel_efficiency, float):
            return self.kernel_efficiency
        return _of_kernel(self.kernel_efficiency, kernel_name(instruction)) or KERNEL_EFFICIENCY

    def _kernel(self, instruction: Instruction) -> float:
        name = kernel_name(instruction)
        flops: float | None = None
        if callable(self.kernels):
            flops = self.kernels(instruction)
        elif self.kernels:
            flops = _of_kernel(self.kernels, name)
        if flops is None:
            flops = stated_flops(instruction)
        if flops is None:
            self.unpriced[name] = None
        return flops or 0.0

    def _collective(self, collective: Collective) -> float:
        """By the links that the compiler says it uses; else those of a ring, one each way."""
        if self.devices_per_slice and collective.crosses(self.devices_per_slice):
            return collective.wire_bytes / self.chip.slow_bandwidth + BETWEEN_SLICES
        links = re.search(r"\bcolors:(\d+)", collective.instruction.text)
        # Permutations come in pairs, one each way round (windowed einsums).
        used = min(self.chip.links, int(links.group(1)) if links else 2)
        sides = re.search(r"\bdim_sizes:([\d,]+)", collective.instruction.text)
        around = (
            sum(int(n) // 2 for n in sides.group(1).split(",") if n)
            if sides
            else collective.group_size // 2
        )
        if collective.kind == "collective-permute" or self.chip.links == 1:
            around = 1
        hops = 2 * around if collective.kind == "all-reduce" else around
        return collective.wire_bytes / (used * self.chip.link_bandwidth) + hops * HOP

    def result(self) -> Estimate:
        for loops in sorted(self.nests, key=len, reverse=True):
            if loops:
                # A loop that holds nothing but loops has no nest yet.
                self.nests[loops[:-1]].inner.append(self.nests[loops])
        top = self._roots()
        exposed = sum(nest.exposed for nest in self.nests.values())
        apart = sum(n.work + n.prefetch + n.hidden + n.exposed for n in self.nests.values())

        def total(own: Callable[[_Nest], float]) -> float:
            return sum(nest.seconds(own) for nest in top)

        return Estimate(
            seconds=total(_Nest.by_schedule),
            seconds_without_overlap=apart,
            compiler_seconds=total(_Nest.by_compiler) if self.chip.clock else None,
            roofline_seconds=total(_Nest.by_roofline),
            matmul_seconds=sum(nest.matmul for nest in self.nests.values()),
            collective_seconds=self.collectives,
            exposed_collective_seconds=exposed,
            flops=self.flops,
            read=self.read,
            written=self.written,
            collective_bytes=self.sent,
            by_loop={loops: nest.by_itself() for loops, nest in self.nests.items()},
            unpriced=tuple(self.unpriced),
            method=self._method(),
            error=error_of(self.chip),
        )

    def _roots(self) -> list[_Nest]:
        inner = {id(nest) for each in self.nests.values() for nest in each.inner}
        return [nest for nest in self.nests.values() if id(nest) not in inner]

    def _said_efficiency(self) -> str:
        shares = self.kernel_efficiency
        values = [shares] if isinstance(shares, float) else sorted(set(shares.values()))
        return " and ".join(f"{share:.0%}" for share in values)

    def _method(self) -> str:
        chip = self.chip
        cycles = (
            f"products no faster than the compiler's cycles at {chip.clock / 1e9:g} GHz, the rest "
            f"no faster than {1 / SLOW_READS:.0%} of them where it reads HBM; "
            if chip.clock
            else ""
        )
        if chip.launch:
            cycles = f"no kernel shorter than {chip.launch * 1e6:g} microseconds; "
        return (
            f"Each instruction of the compiled program, times its loops: the longer of matrix "
            f"products at {chip.peak / 1e12:g} TFLOP/s and HBM bytes at {BANDWIDTH_EFFICIENCY:.0%} "
            f"of {chip.hbm_bandwidth / 1e9:g} GB/s; {cycles}kernels at "
            f"{self._said_efficiency()} of peak; collectives by ring algorithms at "
            f"{chip.link_bandwidth / 1e9:g} GB/s a link and way; asynchronous ones hidden behind "
            f"the work of the same loop; transfers to VMEM beside what the program has between "
            f"their start and their end."
        )
