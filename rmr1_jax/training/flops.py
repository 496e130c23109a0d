"""Model FLOPs utilisation: the arithmetic that a step needs, against what the devices could do.

Counted is what the objective needs, forward (2 a weight and token) and backward (4, or 2 where the
weights are not trained, as with adapters): every matrix at every real token, the output head only
where something is learnt, causal attention within each sequence. Padding, recomputation (remat)
and chunks computed twice are not work.
"""

import math
import time
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.weight_map import dimensions, tensors_of

# Dense bf16 FLOP/s of one device, from the vendors' data sheets.
PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "Tesla T4": 65e12,
}


def matrix_parameters(config: ModelConfig) -> tuple[int, int]:
    """(weights that multiply every token, weights of the output head)."""
    kernels = [t for t in tensors_of(config) if t.path.endswith("kernel")]
    body = sum(math.prod(t.shape(config)) for t in kernels if t.stacked)
    sizes = dimensions(config)
    return body, sizes["D"] * sizes["V"]


def training_flops(
    config: ModelConfig,
    sequence_lengths: np.ndarray,
    learnt_tokens: int | float,
    *,
    adapters_only: bool = False,
) -> float:
    """FLOPs that one pass forward and backward over these sequences needs."""
    body, head = matrix_parameters(config)
    lengths = sequence_lengths.astype(np.float64)
    # Scores and weighted values: 2 x 2 x N x H for each of the (t + 1) keys of token t.
    sizes = dimensions(config)
    pairs = float((lengths * (lengths + 1) / 2).sum())
    attention = 4 * sizes["L"] * sizes["N"] * sizes["H"] * pairs
    matrices = 2 * body * float(lengths.sum()) + 2 * head * float(learnt_tokens)
    return (2 if adapters_only else 3) * matrices + 3 * attention


def group_flops(
    config: ModelConfig, prompts: Int[np.ndarray, " N"], responses: Int[np.ndarray, "N G"]
) -> float:
    """FLOPs of one forward pass over groups: each prompt once, each response after it."""
    body, head = matrix_parameters(config)
    p, r = prompts.astype(np.float64), responses.astype(np.float64)
    sizes = dimensions(config)
    pairs = (p * (p + 1) / 2).sum() + (r * (r + 1) / 2 + r * p[:, None]).sum()
    attention = 4 * sizes["L"] * sizes["N"] * sizes["H"] * float(pairs)
    return 2 * body * float(p.sum() + r.sum()) + 2 * head * float(r.sum()) + attention


@cache
def peak_flops() -> float:
    """FLOP/s of one of this process' devices.

    From the data sheet where the device has one here; else (a CPU, all of whose simulated devices
    share its cores) the fp32 matrix product rate, measured for a moment.
    """
    device = jax.devices()[0]
    for name in sorted(PEAK, key=len, reverse=True):
        if device.device_kind.startswith(name):
            return PEAK[name]
    return _measured() / jax.local_device_count()


def _measured(size: int = 1024, repeats: int = 8) -> float:
    product = jax.jit(lambda x: x @ x)
    x = jnp.full((size, size), 1e-3, jnp.float32)
    product(x).block_until_ready()
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
