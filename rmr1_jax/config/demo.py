"""What `--stage=demo` is asked for."""

from dataclasses import dataclass

from rmr1_jax.config.checks import at_least


@dataclass(frozen=True)
class DemoConfig:
    """Convert a small model and judge six pairs with it; a CPU will do."""

    workdir: str = "demo"
    """Where the converted model and the verdicts go."""
    max_new_tokens: int = 128
    """The longest trace, in tokens."""

    def check(self) -> None:
        """Refuse what cannot work, before anything is converted. Raises UserError."""
        at_least("max_new_tokens", self.max_new_tokens, 1)
