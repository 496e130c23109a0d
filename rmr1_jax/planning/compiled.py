"""One program compiled ahead of time: what it takes of a chip's memory, and how long that took."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from rmr1_jax.errors import UserError
from rmr1_jax.planning.recipe_programs import Planned

# "... required for HLO temporaries (16.43G) exceeds available HBM (15.75G)" and its variants.
_TOO_BIG = re.compile(r"\(([0-9.]+)([KMGT])\) exceeds available [A-Za-z]+ \(([0-9.]+)([KMGT])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


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
