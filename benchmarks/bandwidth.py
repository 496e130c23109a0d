"""The floor of decoding: each weight and each live KV entry read once a step, at copy speed."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np

from benchmarks.workloads import Workload
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params

COPY_BYTES = 512 * 2**20  # far beyond any cache


def copy_bandwidth(threads: int, repeats: int = 7) -> float:
    """Bytes a second of the best of `repeats` copies; bytes read and bytes written both count.

    One `numpy.copyto` a thread, between arrays whose pages exist.
    """
    source = np.ones(COPY_BYTES // 8)
    target = np.zeros_like(source)
    target[:] = 1.0  # zeros are not backed by memory before they are written
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(lambda part: np.copyto(*part), parts))
            seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


@dataclass(frozen=True)
class Traffic:
    """Bytes that decoding must read."""

    weights: int
    kv: int

    @property
    def total(self) -> int:
        return self.weights + self.kv


def least_traffic(workload: Workload, config: ModelConfig, weights: Params, steps: int) -> Traffic:
    """The weights once a step; a response's KV at each of its steps; a prompt's once for its group.

    A prompt is counted for the steps of its longest sample, as if all its samples ran together. Its
    last token is the first input of each response, and counted there.
    """
    itemsize = weights["embed"]["embedding"].dtype.itemsize
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * itemsize
    entries = sum(length * (length + 1) // 2 for group in workload.lengths for length in group)
    for prompt, lengths in zip(workload.prompts, workload.lengths, strict=True):
        entries += (len(prompt) - 1) * max(lengths)
    return Traffic(weights=steps * weight_bytes(config, weights), kv=entries * per_token)


def weight_bytes(config: ModelConfig, weights: Params) -> int:
    """Bytes of the weights that a step reads whole: of an untied embedding it reads a few rows."""
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    return total if config.tie_embeddings else total - weights["embed"]["embedding"].nbytes
