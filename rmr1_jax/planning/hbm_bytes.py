"""Bytes that an instruction moves to and from the device's main memory (HBM).

Counted is what has to be read and written once: arrays of a top-level instruction that lie in HBM
(the TPU compiler says which lie in VMEM), with the padding of their layout. A fusion reads of its
parameters what it uses: of one that it only slices, the slices. An update in place writes the
update. What an instruction reads twice is counted once. Copies of large arrays, which must not
happen to a cache, are found with the same count.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from rmr1_jax.planning.hlo import HBM, Computation, Instruction, Program, Shape
from rmr1_jax.planning.hlo_flops import Costs, is_gemm, is_marker
from rmr1_jax.planning.hlo_walk import Loop, Trips, once, walk

COLLECTIVES = frozenset(
    {"all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"}
    | {"ragged-all-to-all", "collective-broadcast"}
)
# They move nothing: names for what is there, and containers of what does.
_FREE = frozenset(
    {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional"}
    | {"call", "call-start", "after-all", "partition-id", "replica-id", "opt-barrier"}
    | {"optimization-barrier", "add-dependency", "domain"}
)
_SLICES = frozenset({"dynamic-slice", "slice", "gather"})
# Inside a fusion: what needs of its operand just what is needed of it.
_ONE_TO_ONE = frozenset(
    {"bitcast", "convert", "copy", "transpose", "reshape", "reverse", "negate", "reduce-precision"}
)
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""Opcode -> which operand holds the new part."""
# The share of an operand that a kernel reads.
Reads = Callable[[Instruction, Shape], float]


@dataclass(frozen=True)
class Traffic:
    """Bytes."""

    read: float = 0.0
    written: float = 0.0

    @property
    def total(self) -> float:
        return self.read + self.written


class HbmTraffic:
    """HBM traffic of the instructions of one program.

    Args:
      program: from `read_program`.
      reads: what share of each operand a custom call reads; default: all of all.
    """

    def __init__(self, program: Program, reads: Reads = lambda call, operand: 1.0):
        self.program, self.reads = program, reads
        self._needs: dict[tuple[str, str], float] = {}

    def of(self, instruction: Instruction) -> Traffic:
        """Of one execution, what is called or looped over apart."""
        opcode = instruction.opcode
        computation = self.program.computations[instruction.computation]
        if opcode in _FREE or opcode.endswith(("-done", "-update")) or is_marker(instruction):
            return Traffic()
        inputs = [computation[name].shapes for name in instruction.operands]
        once = [computation[name].shapes for name in dict.fromkeys(instruction.operands)]
        if opcode == "copy-start":
            destination, source = instruction.shapes[:2]
            return Traffic(_in_hbm(source), _in_hbm(destination))
        if opcode.removesuffix("-start") in _SLICES:
            return _slice(instruction, inputs)
        if opcode in _UPDATES:
            update = inputs[_UPDATES[opcode]][0]
            written = update.stored if instruction.shapes[0].space == HBM else 0.0
            return Traffic(_in_hbm(update), written)
        if opcode in ("fusion", "fusion-start"):
            return self._fusion(instruction, inputs)
        results = _results(instruction)
        aliased = _aliased(instruction)
        share = self.reads if opcode == "custom-call" else lambda call, operand: 1.0
        return Traffic(
            sum(share(instruction, s) * _in_hbm(s) for shapes in once for s in shapes),
            sum(_in_hbm(shape) for i, shape in enumerate(results) if i not in aliased),
        )

    def _fusion(self, fusion: Instruction, inputs: list[tuple[Shape, ...]]) -> Traffic:
        body = self.program.called(fusion)
        read = 0.0
        for shapes, parameter in zip(inputs, body.parameters, strict=True):
            for shape in shapes:
                if shape.space == HBM and shape.elements:
                    share = min(1.0, self.needed(body, parameter.name) / shape.elements)
                    read += share * shape.stored
        # A start returns more than what its fusion makes.
        made = fusion.shapes if fusion.opcode == "fusion" else body.root.shapes
        written = sum(
            self._written(body, leaf, shape)
            for leaf, shape in zip(outputs(body), made, strict=False)
            if shape.space == HBM
        )
        if starts_collective(body):  # the transfer goes on through the fusions that follow
            done = [i for i in body if i.opcode in COLLECTIVES]
            read += sum(_in_hbm(s) for i in done for s in body.inputs(i))
            written += sum(_in_hbm(s) for i in done for s in i.shapes)
        return Traffic(read, written)

    def needed(self, computation: Computation, name: str) -> float:
        """Elements of a value inside a fusion that are used for something."""
        key = computation.name, name
        if key not in self._needs:
            self._needs[key] = self._needed(computation, computation[name])
        return self._needs[key]

    def _needed(self, computation: Computation, value: Instruction) -> float:
        whole = float(sum(shape.elements for shape in value.shapes))
        if value is computation.root and value.opcode != "parameter":
            return 0.0 if value.opcode in _UPDATES else whole
        total = 0.0
        for user in computation.users[value.name]:
            first = bool(user.operands) and user.operands[0] == value.name
            if user.opcode == "tuple" and user is computation.root:
                # A parameter that is also a result is the same buffer, as is one updated in place.
                total += 0.0 if value.opcode in ("parameter", *_UPDATES) else whole
            elif user.opcode in _SLICES and first:
                total += user.shapes[0].elements
            elif (user.opcode in _UPDATES and first) or user.opcode in _ONE_TO_ONE:
                total += self.needed(computation, user.name)
            elif user.opcode == "fusion":
                inner = self.program.called(user)
                for operand, parameter in zip(user.operands, inner.parameters, strict=True):
                    if operand == value.name:
                        total += self.needed(inner, parameter.name)
            elif user.opcode not in COLLECTIVES and not is_marker(user):
                return whole
        return min(total, whole)

    def _written(self, computation: Computation, leaf: Instruction, shape: Shape) -> float:
        """Bytes of one result: the update where it is made in place, nothing where it is passed."""
        seen = leaf
        while seen.opcode in ("bitcast", "convert", "copy", "reshape"):
            seen = computation[seen.operands[0]]
        if seen.opcode == "parameter" and leaf.opcode in ("parameter", "bitcast"):
            return 0.0
        if seen.opcode in COLLECTIVES or is_marker(seen):
            return 0.0
        if seen.opcode == "get-tuple-element" and is_marker(computation[seen.operands[0]]):
            return 0.0
        if seen.opcode == "fusion":
            inner = self.program.called(seen)
            return self._written(inner, inner.root, shape)
        if seen.opcode in _UPDATES and _is_argument(computation, seen.operands[0]):
            update = computation[seen.operands[_UPDATES[seen.opcode]]].shapes[0]
            return update.elements * shape.itemsize
        return shape.stored


def outputs(computation: Computation) -> tuple[Instruction, ...]:
    """What a computation returns, one instruction for each array."""
    root = computation.root
    if root.opcode == "tuple":
        return tuple(computation[name] for name in root.operands)
    return (root,) * max(1, len(root.shapes))


def starts_collective(fused: Computation) -> bool:
    """Whether this fused computation is the start of an asynchronous collective of the TPU."""
    return any(i.target == "AsyncCollectiveStart" for i in fused if i.opcode == "custom-call")


def _is_argument(computation: Computation, name: str) -> bool:
    value = computation[name]
    while value.opcode in ("bitcast", "convert", "copy", "reshape"):
        value = computation[value.operands[0]]
    return value.opcode in ("parameter", *_UPDATES)


def _in_hbm(shape: Shape) -> float:
    return shape.stored if shape.space == HBM else 0.0


def _slice(instruction: Instruction, inputs: list[tuple[Shape, ...]]) -> Traffic:
    result = instruction.shapes[1 if instruction.opcode.endswith("-start") else 0]
    read = result.stored if inputs[0][0].space == HBM else 0.0
    return Traffic(read, _in_hbm(result))


def _results(instruction: Instruction) -> tuple[Shape, ...]:
    """An asynchronous start returns its operands too, and flags; cuBLAS the room it works in; a
    send nothing but what it was given."""
    if instruction.opcode == "send":
        return ()
    if is_gemm(instruction):
        return instruction.shapes[:1]
    if not instruction.opcode.endswith("-start"):
        return instruction.shapes
    arrays = tuple(s for s in instruction.shapes if s.dims)
    count = len(instruction.operands)
    return arrays[count:] if len(arrays) >= 2 * count else arrays


def _aliased(instruction: Instruction) -> set[int]:
    """Results that are operands, updated in place."""
    _, _, listed = instruction.attributes.partition("output_to_operand_aliasing=")
    return {int(n or 0) for n in re.findall(r"\{(\d*)\}: \(\d+", listed)}


@dataclass(frozen=True)
class Copy:
    """An instruction that writes to HBM what was somewhere already."""

    bytes: float
    """Written by one execution."""
    times: float
    shape: Shape


def copies(
    program: Program,
    at_least: float,
    *,
    within: Callable[[Loop], bool] | None = None,
    elements: Collection[int] = (),
    trips: Trips = once,
) -> list[Copy]:
    """Copies of at least so many bytes.

    Found are plain copies (also back from VMEM, where the compiler took an array to work on it);
    transpositions and other fusions without a matrix product whose result has as many elements as
    one of their operands; and updates in place of so many bytes, such as a whole layer's cache put
    back into a stack. Reading an array into VMEM is none, nor is an update in place of a column.
    Elementwise work on an array of that size looks the same: ask for more bytes than activations
    have, or name `elements`.

    Args:
      program: from `read_program`.
      at_least: bytes of one copy.
      within: only in loops of which this is true (or in loops within them); default: anywhere.
      elements: sizes of arrays to look at; default: any.
      trips: see `walk`.
    """
    memory, costs = HbmTraffic(program), Costs(program)
    found = []
    for step in walk(program, trips):
        if within is not None and not any(within(loop) for loop in step.loops):
            continue
        instruction = step.instruction
        written = memory.of(instruction).written
        if written < at_least or costs.of(instruction).flops:
            continue
        shape = _copied(program, instruction, at_least)
        if shape is not None and (not elements or shape.elements in elements):
            found.append(Copy(written, step.times, shape))
    return found


def _copied(program: Program, instruction: Instruction, at_least: float) -> Shape | None:
    """The array that is written again, if there is one."""
    computation = program.computations[instruction.computation]
    inputs = {shape.elements for shape in computation.inputs(instruction)}
    if instruction.opcode in _UPDATES:
        return computation[instruction.operands[_UPDATES[instruction.opcode]]].shapes[0]
    results = instruction.shapes
    if instruction.opcode == "copy-start":
        results = instruction.shapes[:1]
    elif instruction.opcode == "fusion":
        body = program.called(instruction)
        for leaf in outputs(body):
            if leaf.opcode in _UPDATES:
                update = body[leaf.operands[_UPDATES[leaf.opcode]]].shapes[0]
                if update.stored >= at_least:
                    return update
    elif instruction.opcode not in ("copy", "transpose", "reshape", "slice-start", "concatenate"):
        return None
    for shape in results:
        if shape.space == HBM and shape.stored >= at_least and shape.elements in inputs:
            return shape
    return None
