"""How a model draws its tokens, wherever it writes."""

from dataclasses import dataclass

from rmr1_jax.config.checks import at_least
from rmr1_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The distribution that a token is drawn from. Other values recompile nothing."""

    temperature: float = 0.0
    """0 takes the likeliest token; above 0 samples."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability. 1 is off."""
    top_k: int = 0
    """Sample from this many of the likeliest tokens. 0 is off."""
    min_p: float = 0.0
    """Leave out tokens below this part of the likeliest one's probability. 0 is off."""

    def check_sampling(self, section: str = "") -> None:
        """Refuse what is no distribution. Raises UserError."""
        at_least(f"{section}temperature", self.temperature, 0)
        at_least(f"{section}top_k", self.top_k, 0)
        if not 0 < self.top_p <= 1:
            raise UserError(f"--{section}top_p={self.top_p} must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"--{section}min_p={self.min_p} must be from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Sampling):
    """How traces are sampled. Only longer traces may compile another program."""

    max_new_tokens: int = 2048
    """The longest trace, in tokens."""
    seed: int = 0
    """The same seed gives the same traces."""
