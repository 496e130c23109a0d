"""A compiled program as XLA prints it (`compiled.as_text()`), read into instructions.

Pure Python on text: it needs no device and no JAX. What is read is the optimised, scheduled program
of one device, so shapes are those of its part, and their layouts say how an array is tiled (and
padded) and which memory it lies in. Grammar: openxla.org/xla/operation_semantics and /shapes.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

# Where an array lies, as the layout of its shape says: `S(1)`; nothing means HBM.
HBM, VMEM, HOST = 0, 1, 5

_SHAPE = re.compile(r"([a-z]+\d*[a-z]?\w*)\[([\d,<=?]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?")
# Of types whose names do not say it. A token or an opaque handle holds nothing.
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_TILE = re.compile(r"T\(([\d,*]*)\)")
_SPACE = re.compile(r"S\((\d+)\)")
# A computation starts at a header and an instruction at its name; all else goes on with what came
# before. The metadata of Pallas kernels has line breaks and lines of closing braces in it.
_START = re.compile(
    r"^(?:(?P<entry>ENTRY )?%?(?P<computation>[\w.\-]+) \(.*\) -> .*\{[ \t]*$"
    r"|[ \t]+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?=\(|[a-z]\w*\[))",
    re.MULTILINE,
)
_OPCODE = re.compile(r"([a-z][\w\-]*)\(")
_AFTER_TUPLE = re.compile(r"\)\s+([a-z][\w\-]*)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(calls|to_apply|condition|body|branch_computations|called_computations"
    r"|true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
# Attributes that carry free text come last.
_FREE_TEXT = re.compile(r", (?:frontend_attributes|metadata|backend_config|sharding)=")


@dataclass(frozen=True)
class Shape:
    """One array: element type, dimensions, layout, memory."""

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    """Of the minor-most dimensions, major first; the array is padded to whole tiles."""
    space: int = HBM

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def itemsize(self) -> float:
        """Bytes an element, a fraction for 4-bit types."""
        return _bits(self.dtype) / 8

    @property
    def bytes(self) -> float:
        return self.elements * self.itemsize

    @property
    def stored(self) -> float:
        """Bytes with the padding of the layout: what the memory moves."""
        return math.prod(self._padded) * self.itemsize

    @property
    def _padded(self) -> tuple[int, ...]:
        if not self.tile or len(self.tile) > len(self.dims) or not self.minor_to_major:
            return self.dims
        dims = list(self.dims)
        for size, axis in zip(reversed(self.tile), self.minor_to_major, strict=False):
            dims[axis] = -(-dims[axis] // size) * size
        return tuple(dims)


def read_shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a shape or of a (nested) tuple of shapes, in order."""
    shapes = []
    for dtype, dims, order, rest in _SHAPE.findall(text):
        tile = _TILE.search(rest)
        space = _SPACE.search(rest)
        shapes.append(
            Shape(
                dtype,
                tuple(int(d.lstrip("<=")) for d in dims.split(",") if d.lstrip("<=").isdigit()),
                tuple(int(d) for d in order.split(",") if d),
                _tile(tile.group(1)) if tile else (),
                int(space.group(1)) if space else HBM,
            )
        )
    return tuple(shapes)


@dataclass(frozen=True, eq=False)
class Instruction:
    """One line of a program. Two are equal only if they are the same one."""

    name: str
    opcode: str
    computation: str
    operands: tuple[str, ...]
    argument: str
    """What stands in the parentheses: a parameter's number, a constant's value."""
    shape_text: str
    text: str
    """All attributes."""

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """The arrays of its result; several for a tuple."""
        return read_shapes(self.shape_text)

    @cached_property
    def attributes(self) -> str:
        """Attributes without those that carry free text (metadata, configuration)."""
        free = _FREE_TEXT.search(self.text)
        return self.text[: free.start()] if free else self.text

    @cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Attribute -> names of the computations that it calls."""
        return {
            key: tuple(name.lstrip("%") for name in re.findall(r"%?[\w.\-]+", names))
            for key, names in _CALLED.findall(self.attributes)
        }

    @property
    def branches(self) -> tuple[str, ...]:
        """Of a `conditional`, in the order of its index."""
        if "branch_computations" in self.called:
            return self.called["branch_computations"]
        return self.called["true_computation"] + self.called["false_computation"]

    @property
    def callee(self) -> str | None:
        """The computation that a fusion, call or asynchronous start runs."""
        for key in ("calls", "to_apply", "called_computations"):
            if self.called.get(key):
                return self.called[key][0]
        return None

    def attribute(self, name: str, default: str | None = None) -> str:
        """The value of an attribute without spaces in it. Raises ValueError where it has none, and
        no default is given."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|\"[^\"]*\"|[^,\s]+)", self.attributes)
        if found is None and default is None:
            raise ValueError(f"{self.opcode} {self.name} has no {name}")
        return found.group(1).strip('"') if found else default or ""

    def numbers(self, name: str) -> tuple[int, ...]:
        """The value of an attribute such as `dimensions={0,1}`."""
        return tuple(int(n) for n in re.findall(r"-?\d+", self.attribute(name)))

    @cached_property
    def op_name(self) -> str:
        """Where JAX made it, such as `jit(step)/while/body/dot_general`."""
        found = re.search(r"op_name=\"([^\"]*)\"", self.text)
        return found.group(1) if found else ""

    @property
    def target(self) -> str:
        """Of a custom call."""
        return self.attribute("custom_call_target")


@dataclass(frozen=True, eq=False)
class Computation:
    """Instructions in the order in which they run, by name."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        found = [i for i in self if i.opcode == "parameter"]
        return tuple(sorted(found, key=lambda i: int(i.argument)))

    @cached_property
    def users(self) -> dict[str, tuple[Instruction, ...]]:
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self:
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return {name: tuple(by) for name, by in users.items()}

    def inputs(self, instruction: Instruction) -> tuple[Shape, ...]:
        """The arrays that an instruction takes, those of tuples one by one."""
        return tuple(s for name in instruction.operands for s in self[name].shapes)


@dataclass(frozen=True, eq=False)
class Program:
    """All computations of one compiled program. Made by `read_program`."""

    computations: Mapping[str, Computation]
    entry: Computation
    unread: int = 0
    """Lines that start like an instruction and are none that can be read."""

    def called(self, instruction: Instruction) -> Computation:
        """What a fusion, call or asynchronous start runs."""
        assert instruction.callee is not None
        return self.computations[instruction.callee]


def read_program(text: str) -> Program:
    """Read what `compiled.as_text()` gives. Raises ValueError if there is no program in it."""
    computations: dict[str, Computation] = {}
    entry, current = "", ""
    instructions: dict[str, Instruction] = {}
    root: Instruction | None = None
    unread = 0

    def close() -> None:
        if current and instructions:
            last = root or next(reversed(instructions.values()))
            computations[current] = Computation(current, instructions, last)

    starts = list(_START.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    for match, end in zip(starts, ends, strict=False):
        if match["computation"]:
            close()
            current, instructions, root = match["computation"], {}, None
            entry = current if match["entry"] else entry
            continue
        instruction = _read_instruction(match["name"], current, text[match.end() : end])
        if instruction is None:
            unread += 1
            continue
        instructions[instruction.name] = instruction
        if match["root"]:
            root = instruction
    close()
    if entry not in computations:
        raise ValueError("no entry computation: not the text of a compiled program")
    return Program(computations, computations[entry], unread)


def _read_instruction(name: str, computation: str, text: str) -> Instruction | None:
    pattern = _AFTER_TUPLE if text.startswith("(") else _OPCODE
    found = pattern.search(text)
    if found is None:
        return None
    end = _closing(text, found.end())
    argument = text[found.end() : end]
    operands = () if found[1] == "constant" else tuple(_OPERAND.findall(argument))
    shape = text[: found.start(1)].strip()
    return Instruction(name, found[1], computation, operands, argument, shape, text[end + 1 :])


def _closing(text: str, start: int) -> int:
    """The position of the parenthesis that closes the one before `start`."""
    end = text.find(")", start)
    if end < 0:
        return len(text)
    if "(" not in text[start:end]:
        return end
    depth = 1
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.match(r"(?:bf|f|s|u|c)(\d+)", dtype)
    if found is None:
        raise ValueError(f"the element type {dtype} is unknown")
    return int(found.group(1))


def _tile(text: str) -> tuple[int, ...]:
    return tuple(int(n) if n.isdigit() else 1 for n in text.split(",") if n)
