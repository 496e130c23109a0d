"""A teacher that is a program: it writes traces about the toy task, mostly right ones."""

import hashlib
from dataclasses import dataclass

from rmr1_jax.judging import Preference
from rmr1_jax.toy_task import scripted_trace

__all__ = ["ScriptedTeacher", "scripted_trace"]


@dataclass(frozen=True)
class ScriptedTeacher:
    """Writes a right trace with probability `accuracy`, else one with a slip and the wrong verdict.

    With probability `haste` it decides about a sum at a glance. Both depend on the seed and the
    preference's id alone, so asking again, or in another order, gives the same trace.
    """

    accuracy: float = 0.9
    haste: float = 0.0
    seed: int = 0

    def write(self, preference: Preference) -> str:
        """Raises UserError for a preference that is not of the toy task."""
        digest = hashlib.sha256(f"{self.seed} {preference.id}".encode()).digest()
        chance, mood = (int.from_bytes(digest[at : at + 6]) / 256**6 for at in (0, 6))
        return scripted_trace(
            preference, right=chance < self.accuracy, seed=self.seed, hasty=mood < self.haste
        )
