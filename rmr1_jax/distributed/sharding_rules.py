"""Which mesh axis each logical axis of an array is split over, and the shardings that follow.

Parameters and activations name their axes (`("embed", "mlp")`); a `Rules` table maps the names to
the axes of the mesh (`distributed/mesh.py`). Training and decoding use different tables over the
same weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Logical axis -> the mesh axes it is split over, major first; empty: every device holds it whole.
Rules = Mapping[str, tuple[str, ...]]
Axes = tuple[str | None, ...]

# Parameters and optimizer state are split over all of fsdp x tensor, and gathered layer by layer.
TRAINING_RULES: Rules = {
    "batch": ("data", "fsdp"),
    "data_batch": ("data",),  # rows of an array whose fsdp axis is needed for "embed"
    "sequence": (),
    "layers": (),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "rank": (),
}

# A decode step reads every weight, so nothing may have to be gathered: only tensor splits them, and
# each data or fsdp group of devices holds a full copy.
DECODING_RULES: Rules = {**TRAINING_RULES, "embed": ()}

# The vocabulary is set by a tokenizer, not by whoever plans a mesh: 151,665 entries divide by
# nothing useful. It is kept whole (on each device of the tensor axis) where it does not divide.
MAY_BE_UNEVEN = ("vocab",)


def partition_spec(axes: Axes, rules: Rules) -> PartitionSpec:
    """How an array with these logical axes is split; None names an axis that never is.

    Raises `ValueError` for a name that `rules` does not have. (That two axes of one array ask for
    the same mesh axis is found by JAX when the spec meets a mesh.)
    """
    return PartitionSpec(*(None if axis is None else _entry(axis, rules) for axis in axes))


def shardings(axes: Any, mesh: Mesh, rules: Rules) -> Any:
    """The pytree `axes` (leaf: tuple of logical names) with a `NamedSharding` at each leaf."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, partition_spec(leaf, rules)), axes, is_leaf=_is_axes
    )


def axis_sizes(axes: Any, shapes: Any) -> dict[str, int]:
    """Logical axis -> size, from a tree of names and the tree of arrays (or shapes) it describes.

    Raises `ValueError` where two arrays disagree about an axis, or names and shape do not match.
    """
    sizes: dict[str, int] = {}

    def read(names: Axes, array: Any) -> None:
        for name, size in zip(names, array.shape, strict=True):
            if name is not None and sizes.setdefault(name, size) != size:
                raise ValueError(
                    f"axis {name!r} is {sizes[name]} in one array and {size} in another"
                )

    jax.tree.map(read, axes, shapes, is_leaf=_is_axes)
    return sizes


def even_rules(rules: Rules, sizes: Mapping[str, int], mesh: Mapping[str, int]) -> Rules:
    """`rules`, with the vocabulary kept whole where `mesh` (axis -> size) does not divide it.

    Every other axis that does not divide is refused by `check_mesh`, never silently kept whole.
    """
    whole = {
        axis: ()
        for axis in MAY_BE_UNEVEN
        if axis in sizes and sizes[axis] % ways(axis, rules, mesh)
    }
    return {**rules, **whole}


def ways(axis: str, rules: Rules, mesh: Mapping[str, int]) -> int:
    """Into how many parts `rules` split a logical axis on `mesh` (axis -> size)."""
    parts = 1
    for mesh_axis in rules.get(axis, ()):
        parts *= mesh[mesh_axis]
    return parts


def _entry(axis: str, rules: Rules) -> str | Sequence[str] | None:
    if axis not in rules:
        raise ValueError(f"no rule for the logical axis {axis!r}; there are {', '.join(rules)}")
    mesh_axes = rules[axis]
    return mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes or None


def _is_axes(node: Any) -> bool:
    # A plain tuple of names, () for a scalar; other tuples (of optimizer states, say) are branches.
    return type(node) is tuple and all(name is None or isinstance(name, str) for name in node)
