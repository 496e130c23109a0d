"""A program to compile ahead of time, and what compiling it shows: its memory, and its text."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from rmr1_jax.errors import UserError
from rmr1_jax.planning.hlo_walk import Loop

# "... required for HLO temporaries (16.43G) exceeds available HBM (15.75G)" and its variants.
_TOO_BIG = re.compile(r"\(([0-9.]+)([KMGT])\) exceeds available [A-Za-z]+ \(([0-9.]+)([KMGT])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Planned:
    """One program of a recipe, and what is assumed of the data that it meets."""

    name: str
    lower: Callable[[], Any]
    runs: float
    """A step of training takes so many."""
    useful_flops: float = 0.0
    """What the objective needs of one run, over all chips; recomputation and padding are not it."""
    tokens: float = 0.0
    """Real tokens that one run processes, over all chips."""
    trips: Callable[[Loop], float | None] = lambda loop: None
    """Rounds of its loops that depend on data."""
    attention: float = 1.0
    """Of the pairs of positions that attention kernels would meet in rows that are one segment
    each, the share that they do meet."""
    resident: int = 0
    """Bytes a chip that lie beside its arguments while it runs."""
    decode: "Decode | None" = None


@dataclass(frozen=True)
class Decode:
    """What the decode loop inside of a program should cost."""

    steps: float
    """Of one run of the program."""
    ideal_bytes: float
    """A chip's share of weights and live keys and values, each read once a step."""
    cache_bytes: int
    """The smallest array of the cache on a chip: a copy of one in the loop is a mistake."""
    live: Mapping[int, float]
    """Of each of its arrays, by how many elements it has, the share that lies in live blocks."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one chip while a program runs."""

    arguments: int
    temporaries: int
    results: int
    """That do not take the place of arguments."""
    resident: int
    """What lies beside the program's own."""

    @property
    def peak(self) -> int:
        return self.arguments + self.temporaries + self.results + self.resident


@dataclass(frozen=True)
class TooBig:
    """The compiler's own words about a program that fits no chip, in bytes."""

    needed: int
    available: int


@dataclass(frozen=True)
class Compiled:
    """A program of a recipe after compiling, or after failing to."""

    planned: Planned
    seconds: float
    memory: Memory | None = None
    too_big: TooBig | None = None
    text: str = ""
    """The compiled program."""

    def fits(self, hbm: float) -> bool:
        """Whether a chip of so many bytes holds it and what lies beside it."""
        return self.memory is not None and self.memory.peak <= hbm

    def excess(self, hbm: float) -> float:
        """Bytes that are too many; 0 where it fits."""
        if self.too_big is not None:
            return self.too_big.needed + self.planned.resident - hbm
        assert self.memory is not None
        return max(self.memory.peak - hbm, 0.0)


def compile_ahead(planned: Planned) -> Compiled:
    """Compile for the devices of the program's shardings, which need not be here.

    Too little memory is a result, not an error; every other failure of the compiler is raised, as
    a UserError where it lacks a part.
    """
    start = time.perf_counter()
    try:
        with _not_cached():
            program = planned.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "ptxas" in str(error) or "libdevice" in str(error):
            raise UserError(
                "the GPU compiler lacks NVIDIA's assembler or mathematical functions; "
                "pip install 'jax[cuda13]'"
            ) from error
        too_big = _too_big(str(error))
        if too_big is None:
            raise
        return Compiled(planned, time.perf_counter() - start, too_big=too_big)
    seconds = time.perf_counter() - start
    stats = program.memory_analysis()
    memory = Memory(
        arguments=stats.argument_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        results=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        resident=planned.resident,
    )
    return Compiled(planned, seconds, memory, text=program.as_text())


@contextmanager
def _not_cached() -> Iterator[None]:
    """Programs for devices that are not here can be kept, but not be read again."""
    kept = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # JAX asks once whether it is to be used
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", kept)
        reset_cache()


def _too_big(message: str) -> TooBig | None:
    found = _TOO_BIG.search(message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    needed, unit, available, other = found.groups()
    return TooBig(int(float(needed) * _UNITS[unit]), int(float(available) * _UNITS[other]))
