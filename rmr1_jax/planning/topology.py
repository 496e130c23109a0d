"""Chips that are not here: their names, and devices that programs can be compiled for."""

import math
import os
import re
from dataclasses import dataclass
from typing import Any

import jax

from rmr1_jax.errors import UserError
from rmr1_jax.planning.chips import HOST, TARGETS

# Generation -> TensorCores a chip, by which the names of some accelerator types count.
TPUS = {"v4": 2, "v5e": 1, "v5p": 2, "v6e": 1}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v5": "v5p", "v6litepod": "v6e"}
# Chips -> the shape of a slice, where an accelerator type names no shape.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBIC = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
}
# Another process may have the compiler too; no metadata server is asked, and none missed aloud.
_COMPILER_ALONE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Versions that JAX would ask a GPU's driver for, and there may be none.
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}
GPUS = tuple(TARGETS)
EXAMPLE = "v5p:4x4x4, v5e-16, v5e:4x4*2 or h200:8"


@dataclass(frozen=True)
class Topology:
    """A slice of TPU chips, several of them, or GPUs."""

    chip: str
    shape: str
    slices: int
    chips: int

    @property
    def name(self) -> str:
        return f"{self.chip}:{self.shape}" + (f"*{self.slices}" if self.slices > 1 else "")

    @property
    def is_tpu(self) -> bool:
        return self.chip in TPUS

    @property
    def part(self) -> int:
        """Chips of a slice, or GPUs of a host: what faster connections join."""
        return self.chips // self.slices if self.is_tpu else min(self.chips, HOST)


def parse_topology(text: str) -> Topology:
    """The chips that `v5p:4x4x4`, `v5e-16`, `v5p-128` (TensorCores, as the cloud names it),
    `v5e:4x4*2` (two slices) or `h200:8` mean. Raises UserError."""
    body, star, slices = text.strip().lower().partition("*")
    if star and not re.fullmatch(r"[1-9][0-9]{0,3}", slices):
        raise _unreadable(text, f"{slices!r} is no number of slices")
    match = re.fullmatch(r"([a-z0-9]+)[:-]([0-9x]+)", body)
    if not match:
        raise _unreadable(text, "it names no chip and shape")
    chip, size = _ALIASES.get(match[1], match[1]), match[2]
    if chip in GPUS:
        if star or not size.isdecimal() or int(size) < 1:
            raise _unreadable(text, f"{size + star + slices!r} is no number of GPUs")
        if int(size) > HOST and int(size) % HOST:
            raise _unreadable(text, f"machines of {HOST} GPUs do not make {size}")
        return Topology(chip, size, 1, int(size))
    if chip not in TPUS:
        raise _unreadable(text, f"{match[1]} is unknown (known are {', '.join((*TPUS, *GPUS))})")
    if "x" not in size:
        size = _shape_of(text, chip, int(size))
    sides = [int(side) for side in size.split("x") if side]
    if len(sides) != (2 if TPUS[chip] == 1 else 3) or 0 in sides:
        raise _unreadable(text, f"a {chip} slice has {2 if TPUS[chip] == 1 else 3} sides")
    count = int(slices) if star else 1
    return Topology(chip, size, count, math.prod(sides) * count)


def _shape_of(text: str, chip: str, number: int) -> str:
    shapes = _FLAT if TPUS[chip] == 1 else _CUBIC
    chips, rest = divmod(number, TPUS[chip])
    if rest or chips not in shapes:
        known = ", ".join(f"{chip}-{n * TPUS[chip]}" for n in shapes)
        raise _unreadable(text, f"there is no such slice (there are {known})")
    return shapes[chips]


def devices_of(topology: Topology) -> list[Any]:
    """Devices to compile for, none of which is here. Raises UserError where the compiler for them
    is not installed, or knows no such topology."""
    for name, value in _COMPILER_ALONE.items():  # read when the compiler is loaded
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        if topology.is_tpu:
            extra = {"num_slices": topology.slices} if topology.slices > 1 else {}
            name = f"{topology.chip}:{topology.shape}"
            found = topologies.get_topology_desc(platform="tpu", topology_name=name, **extra)
        else:
            # Slices, hosts of each, GPUs of each: the compiler takes for a slice what NVLink joins.
            hosts = topology.chips // topology.part
            found = topologies.get_topology_desc(
                platform="cuda",
                topology_name=topology.name,
                topology=f"{hosts}x1x{topology.part}",
                target_config=TARGETS[topology.chip].text(),
            )
    except (ImportError, NotImplementedError, ValueError, jax.errors.JaxRuntimeError) as error:
        why = _why_no_tpu if topology.is_tpu else _why_no_gpu
        raise UserError(f"{topology.name}: {why(error)}") from error
    return list(found.devices)


def _why_no_tpu(error: Exception) -> str:
    text = _first_line(error)
    if "libtpu" in text.lower() or isinstance(error, ImportError):
        return f"the TPU compiler is not installed ({text}); pip install libtpu"
    return f"the compiler knows no such topology ({text}); write for example {EXAMPLE}"


def _why_no_gpu(error: Exception) -> str:
    text = _first_line(error)
    if isinstance(error, NotImplementedError):  # no plugin has said that it knows GPUs
        return f"the GPU compiler is not installed ({text}); pip install 'jax[cuda13]'"
    return f"the GPU compiler does not start ({text})"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unreadable(text: str, problem: str) -> UserError:
    return UserError(f"--topology={text}: {problem}. Write for example {EXAMPLE}.")
