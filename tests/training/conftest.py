"""Packed batches of random sequences, and the sequences themselves for plain references."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from rmr1_jax.data.packed_batch import Batch
from rmr1_jax.models.huggingface import save_huggingface
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import random_params
from tests.conftest import FAMILIES, TINY


@dataclass(frozen=True)
class Sequence:
    """Tokens, of which those from `loss_from` on are learnt."""

    tokens: np.ndarray
    loss_from: int

    @property
    def learnt(self) -> int:
        return len(self.tokens) - self.loss_from


@dataclass(frozen=True)
class Packed:
    sequences: list[Sequence]
    batch: Batch


MakePacked = Callable[..., Packed]


@pytest.fixture(scope="session")
def packed() -> MakePacked:
    """A function: seed, micro-batches, rows, loss -> sequences, and the batch that packs them."""

    def make(
        seed: int = 0,
        micro_batches: int = 2,
        rows: int = 2,
        loss: str = "sequence_mean",
        vocab: int = 96,
        pack_length: int = 32,
    ) -> Packed:
        rng = np.random.default_rng(seed)
        shape = (micro_batches * rows, pack_length)
        arrays = {name: np.zeros(shape, np.int32) for name in Batch._fields[:5]}
        weights, verdicts = np.zeros(shape, np.float32), np.zeros(shape, bool)
        sequences = []
        for row in range(shape[0]):
            start = filled = 0
            for number in range(1, int(rng.integers(1, 4)) + 1):
                length = int(rng.integers(4, 11))
                sequence = Sequence(rng.integers(3, vocab, length), int(rng.integers(1, length)))
                sequences.append(sequence)
                span = slice(start, start + length)
                arrays["tokens"][row, span] = sequence.tokens
                arrays["positions"][row, span] = np.arange(length)
                arrays["segment_ids"][row, span] = number
                targets = np.arange(start + sequence.loss_from, start + length)
                where = slice(filled, filled + len(targets))
                arrays["loss_positions"][row, where] = targets - 1
                arrays["loss_targets"][row, where] = arrays["tokens"][row, targets]
                weights[row, where] = 1 / len(targets) if loss == "sequence_mean" else 1.0
                verdicts[row, filled + len(targets) - 1] = True
                start, filled = start + length, filled + len(targets)
        batch = Batch(**arrays, loss_weights=weights, verdicts=verdicts)
        return Packed(
            sequences,
            Batch(*(leaf.reshape(micro_batches, rows, pack_length) for leaf in batch)),
        )

    return make


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function: family -> a small random checkpoint, scaled as a model that trains."""

    @cache
    def make(family: str) -> Path:
        config = ModelConfig.from_hf(dict(TINY | FAMILIES[family]), source=family)
        directory = tmp_path_factory.mktemp("model") / family
        save_huggingface(random_params(config), config, directory)
        return directory

    return make
