"""GPUs as XLA's compiler wants them described, where there is none to ask."""

from dataclasses import dataclass
from functools import partial


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
