"""Between host and devices where the devices belong to several processes.

Every process runs the same host code and must take the same decisions, so what the host decides by
must be whole, and the same, in each of them.
"""

import json
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from rmr1_jax.errors import UserError

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


def is_first() -> bool:
    """Whether this process writes and speaks; one of several does."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """To whoever watches: one process of a run speaks."""
    if is_first():
        print(line, file=sys.stderr, flush=True)


def decided_by_first(decide: Callable[[], Any], about: object) -> Any:
    """What `decide` returns in the first process, in all of them; something that JSON can hold.

    For what only one process may do, or only one can see, such as files. Every process must call
    this. Where `decide` raises, so do all: the first that error, the others a UserError that says
    what it was `about`.
    """
    if jax.process_count() == 1:
        return decide()
    found, failure = b"", None
    if is_first():
        try:
            found = json.dumps(decide()).encode()
        except Exception as error:
            failure = error
    broadcast = multihost_utils.broadcast_one_to_all
    size, refused = broadcast(np.array([len(found), failure is not None]))
    if failure is not None:
        raise failure
    if refused:
        raise UserError(f"{about}: cannot be used; the first process says why")
    padded = np.zeros(int(size), np.uint8)
    padded[: len(found)] = np.frombuffer(found, np.uint8)
    return json.loads(bytes(np.asarray(broadcast(padded), np.uint8)))


@cache
def _replicate(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
