"""Rounds of loops, against what the functions that loop do with data as it is assumed."""

import jax.numpy as jnp
import pytest

from rmr1_jax.ops.packed_attention import live_pairs
from rmr1_jax.planning.recipe_programs import BLOCK, blocks_met


@pytest.mark.parametrize(("positions", "segment"), [(4096, 4096), (4096, 2048), (12288, 1024)])
def test_attention_meets_the_blocks_of_each_segment(positions: int, segment: int) -> None:
    ids = 1 + jnp.arange(positions) // segment
    _, _, live = live_pairs(ids[None], None, BLOCK)
    assert blocks_met(positions, positions * (segment + BLOCK)) == int(live.sum())


def test_blocks_are_as_large_as_divides_a_row() -> None:
    assert blocks_met(768, 1e9) == 3  # two blocks of 384
    assert blocks_met(1000, 1e9) == 3  # 1,024 positions after padding
    assert blocks_met(100, 1e9) == 1


def test_every_block_meets_itself() -> None:
    assert blocks_met(4096, 0) == 8
