"""What an accelerator can do, by the name that topologies have: per device of the compiler."""

from dataclasses import dataclass

from rmr1_jax.planning.gpu_targets import TARGETS
from rmr1_jax.training.flops import PEAK

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
