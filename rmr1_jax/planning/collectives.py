"""Transfers between devices in a program: kind, bytes, group, and in which loop."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rmr1_jax.planning.hbm_bytes import COLLECTIVES, starts_collective
from rmr1_jax.planning.hlo import Computation, Instruction, Program, Shape
from rmr1_jax.planning.hlo_walk import Loop, Step, Trips, unknown, walk

_BETWEEN = re.compile(
    r'_xla_megascale_target="?(?P<target>\{[^"]*\})"?,.*?_xla_megascale_transfer_type="(?P<kind>\w+)"'
)
_SLICE = 100_000


@dataclass(frozen=True)
class Collective:
    """One collective, executed `times` in each run."""

    kind: str
    """`all-gather`, `all-reduce`, `reduce-scatter`, `all-to-all` or `collective-permute`."""
    bytes: float
    """Of the larger of what a device puts in and gets out: of an all-gather, what is gathered."""
    group_size: int
    group: tuple[int, ...]
    """The partitions of one of its groups; of a permutation, a sender and its receiver."""
    times: float
    loops: tuple[Loop, ...]

    @property
    def wire_bytes(self) -> float:
        """What each device sends, once: by the ring algorithm, the least that is possible."""
        share = (self.group_size - 1) / self.group_size
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(
            self.kind, share
        )

    def crosses(self, devices_per_slice: int) -> bool:
        """Whether it leaves a slice, the devices of which are numbered in a row."""
        return len({partition // devices_per_slice for partition in self.group}) > 1


def collectives(program: Program, trips: Trips = unknown) -> list[Collective]:
    """Every collective that is executed between at least two devices; `trips`: see `walk`."""
    return [found for step in walk(program, trips) for found in collectives_of(program, step)]


def collectives_of(program: Program, step: Step) -> Iterator[Collective]:
    """Those that one step is, starts, or has fused into it; none for what waits for them."""
    instruction = step.instruction
    opcode = instruction.opcode
    if opcode in COLLECTIVES:
        yield from _collective(step, instruction, step.computation, opcode)
    elif opcode.removesuffix("-start") in COLLECTIVES:  # what it calls, if anything, is its sum
        kind = opcode.removesuffix("-start")
        yield from _collective(step, instruction, step.computation, kind)
    elif opcode.endswith("-start") and instruction.callee:
        where = program.called(instruction)
        for inner in where:
            if inner.opcode in COLLECTIVES:
                yield from _collective(step, inner, where, inner.opcode)
    elif opcode == "fusion":
        yield from _fused(program, step)
    elif opcode == "send":
        yield from _between_slices(step)


def _between_slices(step: Step) -> Iterator[Collective]:
    """What goes from slice to slice: the TPU compiler has the host send it. The `recv` beside it
    is its other half."""
    instruction = step.instruction
    found = _BETWEEN.search(instruction.text)
    if found is None:
        return
    kind = found["kind"].lower().replace("_", "-")
    group = _group_of_slices(found["target"])
    sent = instruction.shapes[0].bytes
    yield Collective(
        "collective-permute" if kind == "one-to-one" else kind,
        sent * len(group) if kind == "all-gather" else sent,
        len(group),
        group,
        step.times,
        step.loops,
    )


def _group_of_slices(target: str) -> tuple[int, ...]:
    """The first group of `{1,2}x{0:3}` (devices 0 to 3 of slices 1 and 2, each with its like) or of
    `{{100000,200000},...}` (each device as 100,000 times its slice, plus its number)."""
    slices, by, devices = target.partition("x")
    if by:
        size = 1 + max(_numbers(devices))
        return tuple((one - 1) * size for one in _numbers(slices))
    size = 1 + max(number % _SLICE for number in _numbers(target))
    return tuple(
        (number // _SLICE - 1) * size + number % _SLICE
        for number in _numbers(target.partition("}")[0])
    )


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _fused(program: Program, step: Step) -> Iterator[Collective]:
    """The TPU compiler cuts a collective into pieces that it fuses into the work that hides it:
    a start, steps and an end, all with the same channel. The start counts for all of them. A
    reduce-scatter is an all-reduce whose fusion keeps a slice."""
    body = program.called(step.instruction)
    start = starts_collective(body)
    for instruction in (i for i in body if i.opcode in COLLECTIVES):
        if '"async_collective_fusion_config"' in instruction.text and not start:
            continue
        kind = instruction.opcode
        if kind == "all-reduce" and _total(step.instruction.shapes) < _total(instruction.shapes):
            kind = "reduce-scatter"
        yield from _collective(step, instruction, body, kind)


def _collective(
    step: Step, instruction: Instruction, where: Computation, kind: str
) -> Iterator[Collective]:
    group = _group(instruction)
    size = len(group)
    gets_out = put_in = _total(where.inputs(instruction))
    if kind == "all-reduce":  # the TPU may convert what it puts in
        gets_out = put_in = min(put_in, _total(instruction.shapes))
    elif not instruction.opcode.endswith("-start"):
        gets_out = _total(instruction.shapes)
    elif kind == "all-gather":
        gets_out = put_in * size
    if size > 1 or (kind == "collective-permute" and group):
        yield Collective(kind, max(put_in, gets_out), size, group, step.times, step.loops)


def _total(shapes: Sequence[Shape]) -> float:
    return sum(shape.bytes for shape in shapes)


def _group(instruction: Instruction) -> tuple[int, ...]:
    """The first group, in any of the ways in which XLA prints groups."""
    text = instruction.attributes
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text)
    if pairs:
        return tuple(int(n) for n in pairs.groups())
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    if listed:
        return tuple(int(n) for n in listed.group(1).split(",") if n)
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\]\s*(?:,?\s*device_ids=\S+\s*)?\{([^}]*)\}", text
    )
    if mesh:
        return _group_on_mesh(mesh.group(1), mesh.group(2))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape, order = (_ints(iota.group(i)) for i in (1, 2))
        ids = np.arange(math.prod(order)).reshape(order)
        if iota.group(3):
            ids = ids.transpose(_ints(iota.group(3)))
        return tuple(int(n) for n in ids.reshape(shape)[0])
    if "source_target_pairs={}" in text:  # nobody sends
        return ()
    raise ValueError(f"the groups of {instruction.name} are in an unknown form")


def _group_on_mesh(sizes: str, along: str) -> tuple[int, ...]:
    """From `'data'=2,'fsdp'=8` and `'fsdp'`; part of an axis is written `'fsdp':(2)4`."""
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    ids = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
    taken = []
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along):
        stride = math.prod(list(axes.values())[list(axes).index(name) + 1 :])
        whole = axes[name]
        length = int(size) if size else whole
        after = whole // ((int(before) if before else 1) * length)
        taken.append(np.arange(length) * after * stride)
    group = np.zeros(1, int)
    for offsets in taken:
        group = (group[:, None] + offsets[None]).reshape(-1)
    return tuple(int(ids.reshape(-1)[i]) for i in group)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))
