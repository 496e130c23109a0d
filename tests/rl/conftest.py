"""The small checkpoints and batches of the tests of training."""

from tests.training.conftest import model_dir, packed

__all__ = ["model_dir", "packed"]
