"""How numerical code says where an array should lie, without knowing of meshes."""

from collections.abc import Callable

from jaxtyping import Array

# Gives the array back, placed by the logical names of its axes; None names an axis that is whole.
Constrain = Callable[[Array, tuple[str | None, ...]], Array]


def unconstrained(x: Array, axes: tuple[str | None, ...]) -> Array:
    """Leaves the placement to the compiler."""
    return x
