"""Rounds of the loops whose number depends on data, from what is assumed of the data."""

import math
from collections.abc import Callable

from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.ops.cross_entropy import even_chunk
from rmr1_jax.ops.packed_attention import CPU_BLOCK, accelerator_block
from rmr1_jax.planning.hlo_walk import Loop

BLOCK = 512  # positions a block of the attention kernels, of which none is computed in part


def training_loops(
    micro_batches: float, chunks: float, blocks: float
) -> Callable[[Loop], float | None]:
    """Outside, the micro-batches; within each, the chunks of positions that learn something; in its
    layers, where no kernel does it, the pairs of blocks that attention meets."""
    return lambda loop: (micro_batches, chunks, blocks)[min(loop.depth, 2)]


def loss_chunks(model: ModelConfig, positions: int, rows: int, share: float) -> float:
    """Chunks of the loss that hold something, where a share of the positions learns."""
    chunk = even_chunk(positions, model.vocab_size, rows)
    return max(math.ceil(min(share, 1.0) * positions / chunk), 1)


def blocks_met(positions: int, pairs: float) -> float:
    """Pairs of blocks that `packed_attention` meets in a row, of twice so many pairs of positions
    that see each other, whole blocks counted."""
    padded = -(-positions // CPU_BLOCK) * CPU_BLOCK
    block = accelerator_block(padded)
    blocks = padded // block
    return min(max(pairs / 2 / block**2, blocks), blocks * (blocks + 1) / 2)


def engine_loops(steps: float, prompts: float, chunks: float, loop: Loop) -> float | None:
    """Of one run that serves all: each prompt is prefilled in chunks, and then decoded."""
    if loop.depth == 0:
        return 1.0
    if "/prefill/" in loop.op_name:
        return prompts if loop.depth == 1 else chunks
    return steps if loop.op_name.endswith("decode/while") else None
