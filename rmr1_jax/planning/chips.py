"""Accelerators that are not here: their names, what they can do, and devices to compile for."""

import math
import os
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from rmr1_jax.errors import UserError
from rmr1_jax.training.flops import PEAK


@dataclass(frozen=True)
class GpuTarget:
    """What differs between the GPUs that can be planned for."""

    name: str
    capability: tuple[int, int]
    cores: int
    """Streaming multiprocessors."""
    clock: float
    """GHz, at the most."""
    memory: int
    """Bytes that CUDA says there are."""
    bandwidth: float
    """Bytes a second."""
    l2: int
    """Bytes."""
    tensor_operations: int
    """Products of bf16 that one of a core's four matrix units makes in a cycle."""
    tensor_clock: float
    """GHz at which they make what the data sheet promises."""

    def text(self) -> str:
        """A `stream_executor.GpuTargetConfigProto`, as text."""
        products = ((16, 1.0), (10, 1.0), (11, 0.5))  # bf16, fp16 and, as tf32, fp32
        major, minor = self.capability
        matrix = "".join(
            _rate(kind, self.tensor_clock, 4, int(share * self.tensor_operations))
            for kind, share in products
        )
        # One multiplication and addition a cycle in each of a core's 128 lanes.
        scalar = "".join(_rate(kind, self.clock, 128, 1) for kind, _ in products)
        return f"""
gpu_device_info {{
  name: "{self.name}"
  cuda_compute_capability {{
    major: {major} minor: {minor} feature_extension: ACCELERATED_FEATURES
  }}
  core_count: {self.cores}
  clock_rate_ghz: {self.clock}
  device_memory_size: {self.memory}
  memory_bandwidth: {self.bandwidth:.0f}
  l2_cache_size: {self.l2}
  matrix_unit_description {{ {matrix}}}
  scalar_unit_description {{ {scalar}}}
  {_OF_ALL}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{self.name}"
"""


def _rate(kind: int, clock: float, units: int, operations: int) -> str:
    """Of an element type, by its number in XLA's `PrimitiveType`."""
    value = f"clock_rate_ghz: {clock} units_per_core: {units} ops_per_clock: {operations}"
    return f"rate_infos {{ key: {kind} value {{ {value} }} }} "


# Compute capabilities 9.0 and 10.0 are alike in these: docs.nvidia.com/cuda/cuda-c-programming-
# guide, "Technical specifications per compute capability". Grids have 2^31 - 1 and 65,535 blocks.
_OF_ALL = " ".join(
    f"{field}: {value}"
    for field, value in {
        "threads_per_warp": 32,
        "threads_per_block_limit": 1024,
        "threads_per_core_limit": 2048,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "shared_memory_per_core": 228 * 1024,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_block_optin": 227 * 1024,
        "fpus_per_core": 128,
        "device_address_bits": 64,
        "device_interconnect_info": "{ active_links: 18 }",
    }.items()
)

# NVIDIA's data sheets and architecture papers, of the SXM modules; memory and L2 are what a driver
# says (also in XLA's own descriptions, xla/backends/gpu/target_config).
_HOPPER = partial(
    GpuTarget,
    capability=(9, 0),
    cores=132,
    clock=1.98,
    l2=50 * 2**20,
    tensor_operations=512,
    tensor_clock=1.83,
)
TARGETS = {
    "h100": _HOPPER("NVIDIA H100", memory=84_942_979_072, bandwidth=3.35e12),
    "h200": _HOPPER("NVIDIA H200", memory=150_000_000_000, bandwidth=4.8e12),
    "b200": GpuTarget(
        "NVIDIA B200",
        capability=(10, 0),
        cores=148,
        clock=1.965,
        memory=191_514_411_008,
        bandwidth=7.67e12,
        l2=132_644_864,
        tensor_operations=1024,
        tensor_clock=1.835,
    ),
}
HOST = 8
"""GPUs that NVLink joins in one machine."""


GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device; of a TPU v4, on which the compiler sees two, half a chip."""

    name: str
    kind: str
    """Its name in `training.flops.PEAK`."""
    hbm_bandwidth: float
    """Bytes a second."""
    hbm: float
    """Bytes that a program may use."""
    links: int
    """Connections to neighbours, or ports of a switch."""
    link_bandwidth: float
    """Bytes a second that one of them carries each way."""
    slow_bandwidth: float
    """Bytes a second each way between slices of TPUs or hosts of GPUs, a device's share."""
    parts: int = 1
    """Devices that share what PEAK says."""

    @property
    def peak(self) -> float:
        """bf16 FLOP/s."""
        return PEAK[self.kind] / self.parts

    @property
    def is_gpu(self) -> bool:
        return self.name in TARGETS


# Of a GPU's memory what a run can be given (XLA_PYTHON_CLIENT_MEM_FRACTION): CUDA and NCCL take
# some, too. Without being told so JAX takes less.
GPU_SHARE, GPU_SHARE_BY_ITSELF = 0.95, 0.75


def _gpu(name: str, nvlink: float) -> Chip:
    """With NVLink's bytes a second each way, and between hosts a port of 400 Gb/s."""
    gpu = TARGETS[name]
    hbm = GPU_SHARE * gpu.memory
    return Chip(name, gpu.name, gpu.bandwidth, hbm, 1, nvlink, 5e10)


# Sources. HBM and links: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, whose "bidirectional
# inter-chip bandwidth" of a chip (400 GB/s v5e, 1,200 v5p, 800 v6e; 2,400 Gb/s one way v4) is that
# of all links, both ways; 90 % of it is what transfers reach (jax-ml.github.io/scaling-book/tpus:
# 4.5e10 or 9e10 a link and way). Between slices: the same pages and book (6.4 Tb/s for 256 v5e,
# 50 Gb/s a v5p; a v4 chip is taken for a v5e). HBM that a program may use: from the compiler, which
# names the limit when a program is too large. GPUs:
# NVIDIA's data sheets; NVLink each way.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", 0.6e12, 15.25 * GIB, 6, 2.25e10, 1.5e9, parts=2),
        Chip("v5e", "TPU v5e", 8.2e11, 15.75 * GIB, 4, 4.5e10, 3.1e9),
        Chip("v5p", "TPU v5p", 2.765e12, 95.73 * GIB, 6, 9e10, 6.25e9),
        Chip("v6e", "TPU v6e", 1.64e12, 31.24 * GIB, 4, 9e10, 12.5e9),
        _gpu("h100", 4.5e11),
        _gpu("h200", 4.5e11),
        _gpu("b200", 9e11),
    )
}

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
