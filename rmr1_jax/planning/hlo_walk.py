"""What a program executes: each instruction, how often, and in which loops."""

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from rmr1_jax.planning.hlo import Computation, Instruction, Program

_KNOWN = re.compile(r"\"known_trip_count\":\{\"n\":\"?(\d+)")
# What passes a scalar on as it is.
_TRANSPARENT = frozenset(
    {"bitcast", "broadcast", "convert", "copy", "copy-done", "copy-start", "reshape"}
    | {"opt-barrier", "optimization-barrier"}
)
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "maximum": max,
    "minimum": min,
}
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
_MOST_TRIPS = 10_000
"""A loop that has not ended after so many is taken for misread."""

# An integer; a tuple, as a function from an index to an element; None for what depends on data.
Value = Any
# The values of a computation's parameters, by number.
Arguments = Callable[[int], Value]


@dataclass(frozen=True)
class _Element:
    """Stands for an element of a loop's state that has not been given a value."""

    index: int


def _only(value: Value) -> Arguments:
    """The arguments of a computation that has one parameter, or of each the same value."""
    return lambda number: value


class _Scalars:
    """Computes the integers of a program, as far as they do not depend on data."""

    def __init__(self, program: Program):
        self.program = program
        self.is_carried = cache(self._is_carried)

    def value(
        self, instruction: Instruction, computation: Computation, arguments: Arguments
    ) -> Value:
        """The value of an instruction in a computation that was given these arguments."""

        def operand(number: int) -> Value:
            return self.value(computation[instruction.operands[number]], computation, arguments)

        opcode = instruction.opcode
        if opcode == "constant":
            text = instruction.argument.strip()
            return int(text) if re.fullmatch(r"-?\d+", text) else None
        if opcode == "parameter":
            return arguments(int(instruction.argument))
        if opcode in _TRANSPARENT:
            return operand(0)
        if opcode == "tuple":
            return operand
        if opcode == "get-tuple-element":
            whole = operand(0)
            return whole(int(instruction.attribute("index"))) if callable(whole) else None
        if opcode in ("fusion", "call"):
            return self.result(self.program.called(instruction), operand)
        if opcode == "while":
            return self.carried(instruction, operand(0))
        if opcode in _ARITHMETIC or opcode == "compare":
            values = operand(0), operand(1)
            if not all(isinstance(value, int) for value in values):
                return None
            if opcode == "compare":
                return int(_COMPARISONS[instruction.attribute("direction")](*values))
            return _ARITHMETIC[opcode](*values)
        return None

    def result(self, computation: Computation, arguments: Arguments) -> Value:
        return self.value(computation.root, computation, arguments)

    def carried(self, loop: Instruction, start: Value) -> Value:
        """The state of a loop at any time, of which only what it never changes is known."""
        if not callable(start):
            return None
        return lambda index: start(index) if self.is_carried(loop, index) else None

    def _is_carried(self, loop: Instruction, index: int) -> bool:
        """Whether a loop passes on an element of its state as it is."""
        after = self.result(self.part(loop, "body"), _only(_Element))
        return callable(after) and after(index) == _Element(index)

    def part(self, loop: Instruction, part: str) -> Computation:
        return self.program.computations[loop.called[part][0]]

    def trips(self, loop: Instruction, state: Value) -> int | None:
        """How often `loop` runs its body from this state; None where that depends on data. The
        loop is run, on those integers alone that its condition asks for. Raises ValueError for a
        loop that does not end."""
        known = _KNOWN.search(loop.text)
        if known:
            return int(known.group(1))
        condition, body = self.part(loop, "condition"), self.part(loop, "body")
        for count in range(_MOST_TRIPS):
            goes_on = self.result(condition, _only(state))
            if not isinstance(goes_on, int):
                return None
            if not goes_on:
                return count
            state = self.result(body, _only(state))
            state = cache(state) if callable(state) else state
        raise ValueError(f"loop {loop.name} does not end after {_MOST_TRIPS:,} trips")


@dataclass(frozen=True, eq=False)
class Loop:
    """A `while` where it stands: the same one called from two places is two loops."""

    instruction: Instruction
    outer: tuple["Loop", ...]
    """The loops around it, outermost first."""
    trips: int | None
    """None where the number depends on data."""

    @property
    def depth(self) -> int:
        return len(self.outer)

    @property
    def op_name(self) -> str:
        """Where JAX made it: each enclosing loop adds `/while/body`."""
        return self.instruction.op_name


@dataclass(frozen=True)
class Step:
    """One instruction, executed `times` in each run of the program."""

    instruction: Instruction
    computation: Computation
    times: float
    loops: tuple[Loop, ...]


# Trip counts of loops whose number depends on data.
Trips = Callable[[Loop], float | None]
# How often, of all the times that a `conditional` runs, it takes each branch; None: not known.
Branches = Callable[[Instruction], tuple[float, ...] | None]


def unknown(loop: Loop) -> None:
    """As `trips`: nothing is assumed of any loop."""


def once(loop: Loop) -> float:
    """As `trips`: each loop of unknown count counted once."""
    return 1.0


def loops(program: Program) -> Iterator[Loop]:
    """All loops that are executed, each before those in it."""
    seen: set[Loop] = set()
    for step in walk(program, once, branches=_all):
        for loop in step.loops:
            if loop not in seen:
                seen.add(loop)
                yield loop


def walk(
    program: Program, trips: Trips = unknown, branches: Branches = lambda conditional: None
) -> Iterator[Step]:
    """Every instruction that is executed, but for those inside fusions and reductions.

    Conditions of loops are counted as often as bodies.

    Args:
      program: from `read_program`.
      trips: trip counts of the loops that depend on data.
      branches: what share of a conditional's runs takes each branch. By default, and where it
        gives None, all are the one with most instructions: usually the work, the other a way out.

    Raises:
      ValueError: names a loop that `trips` gives no count for, or that does not end.
    """
    whole = _Walk(program, trips, branches)
    yield from whole.computation(program.entry, _only(None), 1.0, ())


class _Walk:
    def __init__(self, program: Program, trips: Trips, branches: Branches):
        self.program, self.trips, self.branches = program, trips, branches
        self.scalars = _Scalars(program)

    def computation(
        self,
        computation: Computation,
        arguments: Arguments,
        times: float,
        around: tuple[Loop, ...],
    ) -> Iterator[Step]:
        for instruction in computation:
            yield Step(instruction, computation, times, around)

            def operand(number: int, instruction: Instruction = instruction) -> Value:
                made = computation[instruction.operands[number]]
                return self.scalars.value(made, computation, arguments)

            if instruction.opcode == "while":
                start = operand(0)
                loop = Loop(instruction, around, self.scalars.trips(instruction, start))
                count = times * self._count(loop)
                state = self.scalars.carried(instruction, start)
                for name in ("condition", "body"):
                    inner = self.scalars.part(instruction, name)
                    yield from self.computation(inner, _only(state), count, (*around, loop))
            elif instruction.opcode == "conditional":
                shares = self._shares(instruction)
                for name, share in zip(instruction.branches, shares, strict=True):
                    if share:
                        branch = self.program.computations[name]
                        yield from self.computation(branch, _only(None), times * share, around)
            elif instruction.opcode in ("call", "call-start") and instruction.callee:
                inner = self.program.called(instruction)
                yield from self.computation(inner, operand, times, around)

    def _count(self, loop: Loop) -> float:
        found = self.trips(loop) if loop.trips is None else loop.trips
        if found is None:
            raise ValueError(
                f"the trip count of loop {loop.instruction.name} ({loop.op_name}) depends on data, "
                "and none was given"
            )
        return found

    def _shares(self, conditional: Instruction) -> tuple[float, ...]:
        shares = self.branches(conditional)
        if shares is not None:
            return shares
        sizes = [self._size(name) for name in conditional.branches]
        return tuple(float(i == sizes.index(max(sizes))) for i in range(len(sizes)))

    def _size(self, name: str) -> int:
        """Instructions, with those of what is called."""
        return sum(
            1 + sum(self._size(inner) for group in i.called.values() for inner in group)
            for i in self.program.computations[name]
        )


def _all(conditional: Instruction) -> tuple[float, ...]:
    return (1.0,) * len(conditional.branches)
