"""What a program executes: each instruction, how often, and in which loops."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rmr1_jax.planning.hlo import Computation, Instruction, Program

_KNOWN = re.compile(r"\"known_trip_count\":\{\"n\":\"?(\d+)")
# What passes a scalar on as it is.
_TRANSPARENT = frozenset(
    {"bitcast", "broadcast", "convert", "copy", "copy-done", "copy-start", "reshape"}
    | {"opt-barrier", "optimization-barrier"}
)
_FLIPPED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "EQ": "EQ", "NE": "NE"}
_DEEPEST = 200


@dataclass(frozen=True, eq=False)
class Frame:
    """A computation as one instruction runs it; the entry has no caller."""

    computation: Computation
    caller: Instruction | None = None
    outer: "Frame | None" = None


# An instruction, and where it is run.
Place = tuple[Instruction, Frame]


def trip_count(program: Program, loop: Instruction, outer: Frame) -> int | None:
    """How often `loop`, run in `outer`, runs its body; None where that depends on data."""
    known = _KNOWN.search(loop.text)
    if known:
        return int(known.group(1))
    return _Reader(program).trips(loop, outer)


class _Reader:
    def __init__(self, program: Program):
        self.program = program

    def trips(self, loop: Instruction, outer: Frame) -> int | None:
        condition = self._inside(loop, outer, "condition")
        test, frame = self.resolve(condition.computation.root, condition)
        if test.opcode != "compare":
            return None
        direction = test.attribute("direction")
        left, right = (self.resolve(frame.computation[n], frame) for n in test.operands)
        counter, limit = self._element(left, condition), self._value(*right)
        if counter is None or limit is None:
            counter, limit = self._element(right, condition), self._value(*left)
            direction = _FLIPPED[direction]
        if counter is None or limit is None:
            return None
        start = self._initial(loop, outer, counter)
        step = self._step(loop, outer, counter)
        if start is None or not step:
            return None
        return _count(start, limit, step, direction)

    def resolve(self, instruction: Instruction, frame: Frame) -> Place:
        """The instruction that makes this value, through copies, calls and tuples in sight."""
        for _ in range(_DEEPEST):
            opcode, computation = instruction.opcode, frame.computation
            if opcode in _TRANSPARENT:
                instruction = computation[instruction.operands[0]]
            elif opcode in ("fusion", "call"):
                frame = Frame(self.program.called(instruction), instruction, frame)
                instruction = frame.computation.root
            elif opcode == "parameter" and _is_called(frame):
                assert frame.caller is not None and frame.outer is not None
                operand = frame.caller.operands[int(instruction.argument)]
                frame = frame.outer
                instruction = frame.computation[operand]
            elif opcode == "get-tuple-element":
                index = int(instruction.attribute("index"))
                whole = computation[instruction.operands[0]]
                source, where = self.resolve(whole, frame)
                if source.opcode != "tuple":
                    return instruction, frame
                frame = where
                instruction = where.computation[source.operands[index]]
            else:
                break
        return instruction, frame

    def _value(self, instruction: Instruction, frame: Frame) -> int | None:
        """The integer that an instruction always is; None if there is none in sight."""
        instruction, frame = self.resolve(instruction, frame)
        opcode = instruction.opcode
        if opcode == "constant":
            return _integer(instruction.argument)
        if opcode == "get-tuple-element":
            return self._carried(instruction, frame)
        if opcode in ("add", "subtract", "multiply", "maximum", "minimum"):
            a, b = (self._value(frame.computation[n], frame) for n in instruction.operands)
            if a is None or b is None:
                return None
            results = {"add": a + b, "subtract": a - b, "multiply": a * b}
            return results.get(opcode, max(a, b) if opcode == "maximum" else min(a, b))
        return None

    def _carried(self, element: Instruction, frame: Frame) -> int | None:
        """What a loop carries along and never changes, inside or after it."""
        index = int(element.attribute("index"))
        whole, where = self.resolve(frame.computation[element.operands[0]], frame)
        if whole.opcode == "while":
            loop, outer = whole, where
        elif whole.opcode == "parameter" and where.caller and where.outer:
            loop, outer = where.caller, where.outer
        else:
            return None
        if loop.opcode != "while" or not self._invariant(loop, outer, index):
            return None
        return self._initial(loop, outer, index)

    def _initial(self, loop: Instruction, outer: Frame, index: int) -> int | None:
        start, where = self.resolve(outer.computation[loop.operands[0]], outer)
        if start.opcode == "tuple":
            return self._value(where.computation[start.operands[index]], where)
        if start.opcode == "parameter" and where.caller and where.outer:
            enclosing = where.caller
            if enclosing.opcode == "while" and self._invariant(enclosing, where.outer, index):
                return self._initial(enclosing, where.outer, index)
        return None

    def _invariant(self, loop: Instruction, outer: Frame, index: int) -> bool:
        return self._step(loop, outer, index) == 0

    def _step(self, loop: Instruction, outer: Frame, index: int) -> int | None:
        """What the body adds to an element of its tuple; None if it is not always the same."""
        body = self._inside(loop, outer, "body")
        root, where = self.resolve(body.computation.root, body)
        if root is body.computation.parameters[0]:
            return 0
        if root.opcode != "tuple":
            return None
        added, value = 0, self.resolve(where.computation[root.operands[index]], where)
        for _ in range(_DEEPEST):
            instruction, frame = value
            if self._element(value, body) == index:
                return added
            if instruction.opcode not in ("add", "subtract"):
                return None
            first, second = (frame.computation[n] for n in instruction.operands)
            constant = self._value(second, frame)
            if constant is None and instruction.opcode == "add":
                first, constant = second, self._value(first, frame)
            if constant is None:
                return None
            added += constant if instruction.opcode == "add" else -constant
            value = self.resolve(first, frame)
        return None

    def _element(self, place: Place, inside: Frame) -> int | None:
        """Which element of the loop's tuple this is, if it is one."""
        instruction, frame = place
        if instruction.opcode != "get-tuple-element":
            return None
        whole, where = self.resolve(frame.computation[instruction.operands[0]], frame)
        if whole.opcode == "while":  # an inner loop that only carries it along
            index = int(instruction.attribute("index"))
            if not self._invariant(whole, where, index):
                return None
            start, at = self.resolve(where.computation[whole.operands[0]], where)
            if start.opcode != "tuple":
                return None
            carried = self.resolve(at.computation[start.operands[index]], at)
            return self._element(carried, inside)
        if whole is inside.computation.parameters[0] and where is inside:
            return int(instruction.attribute("index"))
        return None

    def _inside(self, loop: Instruction, outer: Frame, part: str) -> Frame:
        return Frame(self.program.computations[loop.called[part][0]], loop, outer)


def _is_called(frame: Frame) -> bool:
    return frame.caller is not None and frame.caller.opcode in ("fusion", "call")


def _count(start: int, limit: int, step: int, direction: str) -> int | None:
    distance = limit - start
    if direction in ("LE", "GE"):
        distance += 1 if direction == "LE" else -1
    if direction == "NE":
        return distance // step if distance % step == 0 and distance * step >= 0 else None
    if direction not in ("LT", "LE", "GT", "GE") or (step > 0) != (direction in ("LT", "LE")):
        return None
    return max(0, -(-distance // step))


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?\d+", text.strip()) else None


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
