"""Between host and devices where the devices belong to several processes.

Every process runs the same host code and must take the same decisions, so what the host decides by
must be whole, and the same, in each of them.
"""

import hashlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from rmr1_jax.errors import UserError

Tree = Any
SEEN_WITHIN = 60.0  # seconds: network file systems show a new file late


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


def part_here(sharding: Sharding, axis: int) -> tuple[int, int]:
    """(part, parts): which part of an axis lies on this process' devices, of how many even parts.

    (0, 1) where they hold all of it, and also where processes hold uneven parts: then each makes
    all, and `to_devices` takes what it needs.
    """
    length = len(sharding.device_set)  # of an axis that any mesh of these devices divides
    held: dict[int, set[int]] = {}
    lies: Mapping[jax.Device, Any] = sharding.devices_indices_map((length,) * (axis + 1))
    for device, indices in lies.items():
        held.setdefault(device.process_index, set()).update(range(length)[indices[axis]])
    parts = sorted({tuple(sorted(some)) for some in held.values()})
    if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) != length:
        return 0, 1
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def is_first() -> bool:
    """Whether this process writes and speaks; one of several does."""
    return jax.process_index() == 0


def log_primary(line: str) -> None:
    """To whoever watches: one process of a run speaks."""
    if is_first():
        print(line, file=sys.stderr, flush=True)


def broadcast_from_primary(decide: Callable[[], Any], about: object) -> Any:
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


def any_process(happened: bool) -> bool:
    """Whether it happened in any process. Every process must call this."""
    if jax.process_count() == 1:
        return happened
    return bool(multihost_utils.process_allgather(np.bool_(happened)).any())


def run_on_primary[T](make: Callable[[], T], about: object) -> T:
    """What `make` returns, where it makes files that are not there yet.

    The first process of several does that alone; the others wait, and then find them. Every process
    must call this. Errors are those of `broadcast_from_primary`.
    """
    if jax.process_count() == 1:
        return make()
    made: list[T] = []
    broadcast_from_primary(lambda: made.append(make()), about)
    return made[0] if made else make()


def assert_same_on_all_hosts(content: bytes, about: object) -> None:
    """Raises UserError, in all processes, where they have not all read the same.

    Each asks the model for what it has read, and all must ask for the same.
    """
    if jax.process_count() == 1:
        return
    mine = hashlib.sha256(content).hexdigest()
    differs = mine != broadcast_from_primary(lambda: mine, about)
    everyone = multihost_utils.process_allgather(np.bool_(differs))
    if everyone.any():
        others = ", ".join(map(str, np.flatnonzero(everyone)))
        raise UserError(
            f"{about}: is not the same in process 0 and in {others}; put it where all hosts see "
            "the same files, or copy it to each"
        )


def assert_shared_directory(directory: Path) -> None:
    """Raises UserError, in all processes, where they do not see the same directory.

    Checkpoints are written by all of them; on disks of their own each would hold a part.
    """
    if jax.process_count() == 1:
        return
    name = broadcast_from_primary(lambda: _leave_mark(directory), about=directory)
    until = time.monotonic() + SEEN_WITHIN
    while not (seen := (directory / name).exists()) and time.monotonic() < until:
        time.sleep(0.5)
    everyone = multihost_utils.process_allgather(np.bool_(seen))
    if is_first():
        (directory / name).unlink(missing_ok=True)
    blind = [str(index) for index in np.flatnonzero(~everyone)]
    if blind:
        raise UserError(
            f"{directory}: process{'es' * (len(blind) > 1)} {', '.join(blind)} of "
            f"{jax.process_count()} cannot see what process 0 writes there; name a directory that "
            "all hosts share (NFS, Filestore, or a bucket mounted with gcsfuse)"
        )


def _leave_mark(directory: Path) -> str:
    name = f".seen-by-all-{secrets.token_hex(8)}"
    (directory / name).touch()
    return name


@cache
def _replicate(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
