"""RM-R1 on JAX: reward models that reason. `Judge.load(DIR).compare(question, a, b)`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmr1_jax.sampling.judge import Judge

__all__ = ["Judge", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `Judge`, and jax with it, only when it is asked for."""
    if name == "Judge":
        from rmr1_jax.sampling.judge import Judge

        return Judge
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
