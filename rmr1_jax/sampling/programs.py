"""The engine's compiled programs, and where their arrays lie."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from rmr1_jax.models.config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.sampling.engine import run
from rmr1_jax.sampling.state import EngineState, Requests, compact, init_state, resize

MAX_STOP_IDS = 8
GROUP_AXES = ("data", "fsdp")  # the mesh axes that split slots into groups


def ring_size(length: int) -> int:
    """The smallest of 128 * {1, 2, 4, 8, ...} that holds `length`."""
    size = 128
    while size < length:
        size *= 2
    return size


def prompt_width(length: int) -> int:
    """The smallest of 128 * {1, 2, 3, 4, 6, 8, 12, ...} that holds `length`."""
    size = ring_size(length)
    return size * 3 // 4 if size > 256 and length <= size * 3 // 4 else size


class Programs:
    """`init_state`, `run`, `resize` and `compact`, compiled once for each size they are asked for.

    On a mesh, every data group (a point of data x fsdp) is an engine of its own, with its part of
    queue, slots and caches: nothing crosses between groups, so none waits for another. Within a
    group, `tensor` splits heads, and XLA places what that needs.
    """

    def __init__(self, config: ModelConfig, weights: Params, group_size: int, mesh: Mesh | None):
        self.config, self.weights, self.group_size, self.mesh = config, weights, group_size, mesh
        self.groups = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        self.run = self._jit(partial(run, config), donate_argnums=1)
        self._programs: dict[tuple[Any, ...], Callable[..., EngineState]] = {}

    def new_state(
        self, *, entries: int, prompts: int, width: int, max_new_tokens: int, slots: int
    ) -> EngineState:
        """An empty state for a data group; `prompts`: how many there are at the most."""
        G = self.group_size
        build = self._compiled(
            init_state,
            self.config,
            group_size=G,
            slots=slots,
            # A lane is held until its last sample ends: spare lanes keep slots busy meanwhile.
            lanes=slots if G == 1 else min(slots, prompts, 2 * -(-slots // G) + 1),
            columns=ring_size(1),
            max_new_tokens=max_new_tokens,
            dtype=self.weights["embed"]["embedding"].dtype,
        )
        requests = Requests.empty(entries * self.groups, width, MAX_STOP_IDS)
        return build(self.place(requests))

    def resize(self, state: EngineState, columns: int, width: int) -> EngineState:
        return self._compiled(resize, columns=columns, width=width)(state)

    def compact(self, state: EngineState, slots: int, columns: int) -> EngineState:
        return self._compiled(compact, slots=slots, columns=columns)(state)

    def place(self, tree: Any) -> Any:
        """Arrays onto the devices of the weights, their leading axis split over the data groups."""
        if self.mesh is None:
            # Committed, as what `run` returns is: or its second call would be lowered again.
            return jax.device_put(tree, self.weights["embed"]["embedding"].sharding)
        return jax.device_put(tree, NamedSharding(self.mesh, Spec(GROUP_AXES)))

    def _compiled(self, function: Callable[..., EngineState], *fixed: Any, **sizes: Any) -> Any:
        """`function` with its static arguments, compiled at their first use."""
        key = (function, *fixed, *sizes.items())
        if key not in self._programs:
            self._programs[key] = self._jit(partial(function, *fixed, **sizes))
        return self._programs[key]

    def _jit(self, function: Callable[..., EngineState], **options: Any) -> Any:
        """Compile a function that returns a state, each data group for itself."""
        if self.mesh is None:
            return jax.jit(function, **options)
        by_group = Spec(GROUP_AXES)

        def mapped(*args: Any) -> EngineState:
            state = (EngineState, Requests)
            return jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=tuple(by_group if isinstance(a, state) else Spec() for a in args),
                out_specs=by_group,
                axis_names=set(GROUP_AXES),
                check_vma=False,
            )(*args)

        # Shardings in the places of arrays: jit takes such a tree as a prefix of the state's.
        rows: Any = NamedSharding(self.mesh, by_group)
        heads: Any = NamedSharding(self.mesh, Spec(GROUP_AXES, "tensor"))
        placed = EngineState(rows, rows, rows, rows, rows, rows, prompts=heads, responses=heads)
        return jax.jit(mapped, out_shardings=placed, **options)
