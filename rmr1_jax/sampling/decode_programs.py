"""The engine's compiled programs, and where their arrays lie."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec
from jaxtyping import Array, Float, Int

from rmr1_jax.distributed.hosts import to_devices, to_host
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.ops.decode_attention import DecodeAttention, LiveAttention, masked
from rmr1_jax.sampling.decode_loop import run
from rmr1_jax.sampling.decode_state import (
    Counters,
    EngineState,
    Outputs,
    Requests,
    compact,
    init_state,
    resize,
)
from rmr1_jax.sampling.prefill import prefill_prefix

MAX_STOP_IDS = 8
ROWS_AT_ONCE = 64  # 6 MB of finished samples where the longest may have 8,192 tokens
GROUP_AXES = ("data", "fsdp")  # the mesh axes that split slots into groups


def cache_length(length: int) -> int:
    """The smallest of 128 * {1, 2, 4, 8, ...} that holds `length`."""
    size = 128
    while size < length:
        size *= 2
    return size


def prompt_width(length: int) -> int:
    """The smallest of 128 * {1, 2, 3, 4, 6, 8, 12, ...} that holds `length`."""
    size = cache_length(length)
    return size * 3 // 4 if size > 256 and length <= size * 3 // 4 else size


class Programs:
    """What runs on the devices, compiled once for each size it is asked for.

    On a mesh, every data group (a point of data x fsdp) is an engine of its own, with its part of
    queue, slots and caches: nothing crosses between groups, so none waits for another. Within a
    group, `tensor` splits heads, and XLA places what that needs.
    """

    def __init__(self, config: ModelConfig, weights: Params, group_size: int, mesh: Mesh | None):
        self.config, self.weights, self.group_size, self.mesh = config, weights, group_size, mesh
        self.groups = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        specs = Spec(), Spec(GROUP_AXES), Spec(GROUP_AXES, "tensor")
        whole, rows, heads = (mesh and NamedSharding(mesh, spec) for spec in specs)
        # Shardings in the places of arrays: jit takes such a tree as a prefix of what is returned.
        caches: Any = {"prompts": heads, "responses": heads, "prefix": heads}
        fields: Any = [rows] * 6
        self._placed = EngineState(*fields, **caches)
        self.run = self._jit(self._run, donate_argnums=1)
        self._prefix = self._jit(partial(prefill_prefix, config), placed=(heads, rows))
        self._rows = jax.jit(_rows, out_shardings=whole)
        self._programs: dict[tuple[Any, ...], Callable[..., EngineState]] = {}

    @property
    def attention(self) -> DecodeAttention:
        """What is fastest on the devices, which need not be of this machine."""
        if self.mesh is not None:
            device = self.mesh.devices.flat[0]
        else:
            (device,) = self.weights["embed"]["embedding"].sharding.device_set
        if device.platform != "tpu":
            return masked
        return LiveAttention(None if self.mesh is None else "tensor")

    def _run(self, *args: Any) -> EngineState:
        return run(self.config, *args, attention=self.attention)

    def new_state(
        self, *, entries: int, prompts: int, width: int, max_new_tokens: int, slots: int
    ) -> EngineState:
        """An empty state for a data group; `prompts`: how many there are at the most."""
        build = self._build(cache_length(1), prompts, max_new_tokens, slots)
        requests = Requests.empty(entries * self.groups, width, MAX_STOP_IDS)
        return build(self.place(requests))

    def shapes(
        self,
        *,
        columns: int,
        entries: int,
        prompts: int,
        width: int,
        max_new_tokens: int,
        slots: int,
    ) -> EngineState:
        """A state as shapes with shardings, for what compiles without devices; arguments as for
        `new_state`, and the columns of the ring."""
        build = self._build(columns, prompts, max_new_tokens, slots)
        empty = partial(Requests.empty, entries * self.groups, width, MAX_STOP_IDS)
        requests = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), jax.eval_shape(empty)
        )
        state = jax.eval_shape(build, requests)
        one = self.weights["embed"]["embedding"].sharding
        placed = jax.tree.broadcast(one if self.mesh is None else self._placed, state)
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            state,
            placed,
        )

    def _build(self, columns: int, prompts: int, max_new_tokens: int, slots: int) -> Any:
        G = self.group_size
        return self._compiled(
            init_state,
            self.config,
            group_size=G,
            slots=slots,
            # A prompt slot is held until its last sample ends: spare prompt slots keep slots busy
            # meanwhile.
            prompt_slots=slots if G == 1 else min(slots, prompts, 2 * -(-slots // G) + 1),
            columns=columns,
            max_new_tokens=max_new_tokens,
            dtype=self.weights["embed"]["embedding"].dtype,
        )

    def with_prefix(self, state: EngineState, tokens: Sequence[int]) -> EngineState:
        """A new state, in which every data group holds the KV of these tokens."""
        padded = np.zeros(prompt_width(len(tokens)), np.int32)
        padded[: len(tokens)] = tokens
        prefix, counters = self._prefix(self.weights, state.counters, padded, len(tokens))
        return replace(state, prefix=prefix, counters=counters)

    def resize(self, state: EngineState, columns: int, width: int) -> EngineState:
        same_width = width == state.requests.tokens.shape[1]
        program = self.resizing(columns, width, same_width)
        resized: EngineState = program(replace(state, responses=()), state.responses)
        return resized

    def resizing(self, columns: int, width: int, same_width: bool) -> Any:
        """(a state without its ring, its ring) -> the state in other sizes.

        Where prompts keep their width the first is donated: only the ring is there twice meanwhile.
        """
        key = (resize, columns, width, same_width)
        if key not in self._programs:
            self._programs[key] = self._jit(
                lambda rest, ring: resize(
                    replace(rest, responses=ring), columns=columns, width=width
                ),
                donate_argnums=0 if same_width else (),
            )
        return self._programs[key]

    def compact(self, state: EngineState, slots: int, columns: int) -> EngineState:
        return self._compiled(compact, slots=slots, columns=columns)(state)

    def place(self, tree: Any) -> Any:
        """Arrays onto the devices of the weights, their leading axis split over the data groups."""
        if self.mesh is None:
            # Committed, as what `run` returns is: or its second call would be lowered again.
            return to_devices(tree, self.weights["embed"]["embedding"].sharding)
        return to_devices(tree, NamedSharding(self.mesh, Spec(GROUP_AXES)))

    def read(self, tree: Any) -> Any:
        """Small arrays of the state, whole on the host of every process."""
        return to_host(tree, self.mesh)

    def read_outputs(
        self, outputs: Outputs, rows: Int[np.ndarray, "n"]
    ) -> Iterator[tuple[Int[np.ndarray, "R"], Float[np.ndarray, "R 2"], Float[np.ndarray, "R"]]]:
        """Tokens, log-probabilities and logit_diffs of some rows, a fixed number a device call."""
        at_once = min(ROWS_AT_ONCE, outputs.length.shape[0])
        for start in range(0, len(rows), at_once):
            some = np.zeros(at_once, np.int32)
            wanted = rows[start : start + at_once]
            some[: len(wanted)] = wanted
            arrays = outputs.tokens, outputs.logprobs, outputs.logit_diffs
            read = jax.device_get(self._rows(arrays, some))
            yield from zip(*(array[: len(wanted)] for array in read), strict=True)

    def _compiled(self, function: Callable[..., EngineState], *fixed: Any, **sizes: Any) -> Any:
        """`function` with its static arguments, compiled at their first use."""
        key = (function, *fixed, *sizes.items())
        if key not in self._programs:
            self._programs[key] = self._jit(partial(function, *fixed, **sizes))
        return self._programs[key]

    def _jit(self, function: Callable[..., Any], placed: Any = None, **options: Any) -> Any:
        """Compile a function that returns a state, or what is `placed`, each group for itself."""
        if self.mesh is None:
            return jax.jit(function, **options)
        by_group = Spec(GROUP_AXES)

        def mapped(*args: Any) -> Any:
            state = (EngineState, Requests, Counters, tuple)
            return jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=tuple(by_group if isinstance(a, state) else Spec() for a in args),
                out_specs=by_group,
                axis_names=set(GROUP_AXES),
                check_vma=False,
            )(*args)

        return jax.jit(mapped, out_shardings=placed or self._placed, **options)


def _rows(arrays: tuple[Array, ...], rows: Int[Array, "n"]) -> tuple[Array, ...]:
    return tuple(array[rows] for array in arrays)
