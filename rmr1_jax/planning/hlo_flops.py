"""Floating-point work of an instruction: matrix products, in whatever form the compiler gives them.

The TPU compiler writes every matrix product as a convolution, often inside a fusion, and some with
padding (windowed einsums); only products of entries that exist are counted. The GPU compiler leaves
them dots, inside fusions that Triton compiles, or calls cuBLAS. Elementwise work is not counted.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from rmr1_jax.planning.hlo import Computation, Instruction, Program
from rmr1_jax.planning.hlo_walk import Trips, unknown, walk

# What one fp32 product costs in those of bf16, at a precision. A TPU's multiplier takes several
# passes. A GPU has half the rate for tf32, and a fifteenth without its matrix units (NVIDIA's data
# sheets: an H100 67 TFLOP/s in fp32, beside 989 in bf16).
TPU_PASSES = {"default": 1, "high": 3, "highest": 6}
GPU_PASSES = {"default": 2, "high": 2, "highest": 15}


# As an attribute, or in the configuration of a call of cuBLAS.
_PRECISION = re.compile(r"operand_precision\"?[=:][{\[]\"?(\w+)\"?,\"?(\w+)")


@dataclass(frozen=True)
class Work:
    """FLOPs of matrix products, and what they cost in those of bf16."""

    flops: float = 0.0
    bf16_flops: float = 0.0

    def plus(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bf16_flops + other.bf16_flops)


class Costs:
    """FLOPs of the instructions of one program; what was counted once is remembered.

    Args:
      program: from `read_program`.
      passes: precision -> what a product in fp32 costs in those of bf16.
    """

    def __init__(self, program: Program, passes: Mapping[str, int] = TPU_PASSES):
        self.program, self.passes = program, passes
        self._computations: dict[str, Work] = {}

    def of(self, instruction: Instruction) -> Work:
        """One execution; a loop, call or conditional by itself does nothing."""
        computation = self.program.computations[instruction.computation]
        opcode = instruction.opcode
        if opcode == "dot":
            return self._priced(instruction, computation, _dot(instruction, computation))
        if opcode == "convolution":
            return self._priced(instruction, computation, _convolution(instruction, computation))
        if opcode in ("fusion", "fusion-start"):
            return self._all_of(self.program.called(instruction))
        if is_gemm(instruction):
            return self._priced(instruction, computation, _gemm(instruction, computation))
        return Work()

    def _priced(self, instruction: Instruction, computation: Computation, flops: float) -> Work:
        precision = _PRECISION.search(instruction.text)
        wide = all(s.dtype in ("f32", "f64") for s in computation.inputs(instruction)[:2])
        said = [p.lower() for p in precision.groups()] if precision else ["default"]
        passes = max(self.passes.get(p, 1) for p in said) if wide else 1
        return Work(flops, flops * passes)

    def _all_of(self, computation: Computation) -> Work:
        if computation.name not in self._computations:
            total = Work()
            for instruction in computation:
                total = total.plus(self.of(instruction))
            self._computations[computation.name] = total
        return self._computations[computation.name]


def dot_flops(program: Program, trips: Trips = unknown) -> float:
    """FLOPs of all matrix products of one device in one run (2 for a multiplication and addition).

    What custom calls (Pallas kernels) compute is not in it. `trips`: see `walk`.
    """
    costs = Costs(program)
    return sum(step.times * costs.of(step.instruction).flops for step in walk(program, trips))


# They compute nothing: names for buffers, layouts and markers of asynchronous work.
_MARKERS = frozenset(
    {"AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveDone", "AsyncCollectiveStart"}
    | {"ConcatBitcast", "GatherScatterIndicesBitpacked", "ZeroCrop", "Sharding"}
)


def is_gemm(instruction: Instruction) -> bool:
    """Whether it is a matrix product by cuBLAS."""
    return instruction.opcode == "custom-call" and instruction.target.startswith("__cublas$")


def is_marker(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and instruction.target in _MARKERS


def kernel_name(instruction: Instruction) -> str:
    """The instruction's name without its number: for Pallas, the name of the kernel."""
    return re.sub(r"(?:\.\d+|\.clone|\.sunk)+$", "", instruction.name)


def stated_flops(call: Instruction) -> float | None:
    """FLOPs of one execution of a kernel, where its author says them."""
    found = re.search(r"\"cost_estimate\":\{[^}]*\"flops\":\"?(\d+)", call.text)
    return float(found.group(1)) if found else None


def _dot(instruction: Instruction, computation: Computation) -> float:
    left = computation[instruction.operands[0]].shapes[0]
    contracted = math.prod(left.dims[d] for d in instruction.numbers("lhs_contracting_dims"))
    return 2.0 * instruction.shapes[0].elements * contracted


def _gemm(instruction: Instruction, computation: Computation) -> float:
    """A cuBLAS call, which keeps the dimensions of the dot it was in its configuration."""
    found = re.search(r"\"lhs_contracting_dimensions\":\[([^\]]*)\]", instruction.text)
    if found is None:
        raise ValueError(f"{instruction.name} does not say what it contracts")
    left = computation[instruction.operands[0]].shapes[0]
    contracted = math.prod(left.dims[int(d)] for d in re.findall(r"\d+", found.group(1)))
    return 2.0 * instruction.shapes[0].elements * contracted


def _convolution(instruction: Instruction, computation: Computation) -> float:
    """Batch x output features x input features of a group x pairs of positions that both exist."""
    image, kernel = (computation[name].shapes[0].dims for name in instruction.operands[:2])
    out = instruction.shapes[0].dims
    labels = re.match(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels"))
    if labels is None:
        raise ValueError(f"{instruction.name} has dim_labels of an unknown form")
    of_image, of_kernel, of_out = labels.groups()
    batches = int(instruction.attribute("batch_group_count", "1"))
    flops = 2.0 * image[of_image.index("b")] / batches
    flops *= kernel[of_kernel.index("i")] * out[of_out.index("f")]
    for axis in sorted(label for label in of_out if label.isdigit()):
        sizes = (
            out[of_out.index(axis)],
            kernel[of_kernel.index(axis)],
            image[of_image.index(axis)],
        )
        flops *= _valid_pairs(*sizes, *_window(instruction, int(axis)))
    return flops


def _window(instruction: Instruction, axis: int) -> tuple[int, int, int, int]:
    """(stride, padding before, dilation of the image, dilation of the kernel) of a dimension."""
    window = re.search(r"\bwindow=\{([^}]*)\}", instruction.attributes)
    fields = dict(part.split("=") for part in window.group(1).split()) if window else {}

    def field(name: str, default: str) -> str:
        return fields[name].split("x")[axis] if name in fields else default

    before = field("pad", "0_0").split("_")[0]
    return (
        int(field("stride", "1")),
        int(before),
        int(field("lhs_dilate", "1")),
        int(field("rhs_dilate", "1")),
    )


def _valid_pairs(
    out: int, kernel: int, image: int, stride: int, before: int, spread: int, dilation: int
) -> int:
    """Pairs (output, kernel position) whose image position exists: neither padding nor a gap."""
    last = (image - 1) * spread
    pairs = 0
    for k in range(kernel):
        shift = k * dilation - before
        low = max(0, -(shift // stride))  # smallest o with o * stride + shift >= 0
        high = min(out - 1, (last - shift) // stride)
        if spread == 1:
            pairs += max(0, high - low + 1)
        else:
            pairs += sum((o * stride + shift) % spread == 0 for o in range(low, high + 1))
    return pairs
