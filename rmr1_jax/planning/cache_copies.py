"""Large arrays that a program writes again as they were: what must not happen to a cache."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from rmr1_jax.planning.hbm_bytes import HbmTraffic, outputs
from rmr1_jax.planning.hlo import HBM, Instruction, Program, Shape
from rmr1_jax.planning.hlo_flops import Costs
from rmr1_jax.planning.hlo_walk import Loop, Trips, once, walk

_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}


@dataclass(frozen=True)
class Copy:
    """An instruction that writes to HBM what was somewhere already."""

    bytes: float
    """Written by one execution."""
    times: float
    loops: tuple[Loop, ...]
    shape: Shape
    instruction: Instruction


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
            found.append(Copy(written, step.times, step.loops, shape, instruction))
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
