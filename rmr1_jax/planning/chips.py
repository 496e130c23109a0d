"""What an accelerator can do, by the name that topologies have; GPUs as XLA describes them."""

from dataclasses import dataclass
from functools import partial

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
