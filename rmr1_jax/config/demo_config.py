"""What `--stage=demo` is asked for."""

from dataclasses import dataclass

from rmr1_jax.config.checks import at_least


@dataclass(frozen=True)
class DemoConfig:
    """Make pairs and traces, train a small judge from random weights in both stages, and evaluate
    it; minutes on a CPU."""

    workdir: str = "demo"
    """The directory for everything. Rerun the command to resume it."""
    max_steps: int | None = None
    """Training steps of each stage. None: as many as it takes to learn."""

    def check(self) -> None:
        """Refuse what cannot work, before anything is made. Raises UserError."""
        if self.max_steps is not None:
            at_least("max_steps", self.max_steps, 1)
