"""What a program executes: each instruction, how often, and in which loops."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rmr1_jax.planning.hlo import Computation, Instruction, Program
from rmr1_jax.planning.trip_counts import Frame, trip_count


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
Trips = Callable[[Loop], float | None] | Mapping[str, float] | None
# How often, of all the times that a `conditional` runs, it takes each branch; None: not known.
Branches = Callable[[Instruction], tuple[float, ...] | None]


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
    program: Program, trips: Trips = None, branches: Branches = lambda conditional: None
) -> Iterator[Step]:
    """Every instruction that is executed, but for those inside fusions and reductions.

    Conditions of loops are counted as often as bodies.

    Args:
      program: from `read_program`.
      trips: trip counts of the loops that depend on data: a function of the loop, or a mapping
        from the end of its `op_name` (of several that fit, the longest).
      branches: what share of a conditional's runs takes each branch. By default, and where it
        gives None, all are the one with most instructions: usually the work, the other a way out.

    Raises:
      ValueError: names a loop that `trips` gives no count for.
    """
    yield from _Walk(program, trips, branches).computation(Frame(program.entry), 1.0, ())


class _Walk:
    def __init__(self, program: Program, trips: Trips, branches: Branches):
        self.program, self.trips, self.branches = program, trips, branches

    def computation(self, frame: Frame, times: float, around: tuple[Loop, ...]) -> Iterator[Step]:
        for instruction in frame.computation:
            yield Step(instruction, frame.computation, times, around)
            yield from self._inside(instruction, frame, times, around)

    def _inside(
        self, instruction: Instruction, frame: Frame, times: float, around: tuple[Loop, ...]
    ) -> Iterator[Step]:
        def enter(name: str, times: float, around: tuple[Loop, ...]) -> Iterator[Step]:
            inner = Frame(self.program.computations[name], instruction, frame)
            return self.computation(inner, times, around)

        if instruction.opcode == "while":
            loop = Loop(instruction, around, trip_count(self.program, instruction, frame))
            count = times * self._trips(loop)
            for part in ("condition", "body"):
                yield from enter(instruction.called[part][0], count, (*around, loop))
        elif instruction.opcode == "conditional":
            for name, share in zip(instruction.branches, self._shares(instruction), strict=True):
                if share:
                    yield from enter(name, times * share, around)
        elif instruction.opcode in ("call", "call-start") and instruction.callee:
            yield from enter(instruction.callee, times, around)

    def _trips(self, loop: Loop) -> float:
        if loop.trips is not None:
            return loop.trips
        found = self._given(loop)
        if found is None:
            raise ValueError(
                f"the trip count of loop {loop.instruction.name} ({loop.op_name}) depends on data, "
                "and none was given"
            )
        return found

    def _given(self, loop: Loop) -> float | None:
        if self.trips is None:
            return None
        if callable(self.trips):
            return self.trips(loop)
        fitting = [end for end in self.trips if loop.op_name.endswith(end)]
        return self.trips[max(fitting, key=len)] if fitting else None

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
