"""Between host and devices where the devices belong to several processes.

Every process runs the same host code and must take the same decisions, so what the host decides by
must be whole, and the same, in each of them.
"""

from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

Tree = Any


def to_host(tree: Tree, mesh: Mesh | None) -> Tree:
    """Arrays that lie on `mesh` as NumPy arrays, whole in every process, free to be changed.

    Every process must call this, with the same tree: the devices exchange their parts. Meant for
    what is small. With one process nothing is compiled and nothing but the arrays moves.
    """
    if mesh is not None and mesh.is_multi_process:
        tree = _replicate(mesh)(tree)
    return jax.tree.map(np.array, jax.device_get(tree))


def to_devices(tree: Tree, sharding: Sharding) -> Tree:
    """NumPy arrays, the same in every process, onto the devices: each process places its parts."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place(array: np.ndarray) -> jax.Array:
        # Unlike device_put, this does not ask the other processes whether they have the same.
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(lambda leaf: place(np.asarray(leaf)), tree)


@cache
def _replicate(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
