"""What `--stage=demo` is asked for."""

from dataclasses import dataclass

from rmr1_jax.config.checks import at_least


@dataclass(frozen=True)
class DemoConfig:
    """Make pairs and traces, train a small judge from random weights in both stages, and evaluate
    it; minutes on a CPU."""

    workdir: str = "demo"
    """Where everything goes. The same command again goes on in it."""
    max_steps: int | None = None
    """Train for so many steps in each stage. None: as long as it takes to learn."""

    def check(self) -> None:
        """Refuse what cannot work, before anything is made. Raises UserError."""
        if self.max_steps is not None:
            at_least("max_steps", self.max_steps, 1)
