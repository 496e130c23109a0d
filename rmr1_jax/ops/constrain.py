"""How numerical code states the sharding of an array without knowing the mesh."""

from collections.abc import Callable

from jaxtyping import Array

# Returns the array, sharded by the logical names of its axes. None is an axis that is not split.
Constrain = Callable[[Array, tuple[str | None, ...]], Array]


def unconstrained(x: Array, axes: tuple[str | None, ...]) -> Array:
    """Leave the sharding to the compiler."""
    return x
