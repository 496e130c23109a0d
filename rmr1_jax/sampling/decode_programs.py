"""The compiled programs of sampling, and how their arrays are sharded."""

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
from rmr1_jax.sampling.decode_loop import run_decode_loop
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
ROWS_AT_ONCE = 64  # finished samples read in one call: 6 MB for 8,192 tokens each
GROUP_AXES = ("data", "fsdp")  # the mesh axes that split slots into groups


def cache_bucket(length: int) -> int:
    """The smallest of 128 * {1, 2, 4, 8, ...} that holds `length`."""
    size = 128
    while size < length:
        size *= 2
    return size


def prompt_width(length: int) -> int:
    """The smallest of 128 * {1, 2, 3, 4, 6, 8, 12, ...} that holds `length`."""
    size = cache_bucket(length)
    return size * 3 // 4 if size > 256 and length <= size * 3 // 4 else size


class Programs:
    """The programs that run on the devices, each compiled once for every size.

    On a mesh, every data group (a point of data x fsdp) samples on its own, with its own part of
    the queue, slots and caches. Nothing crosses between groups, so none waits for another. Within a
    group, `tensor` splits the heads, and XLA adds the collectives for that.
    """

    def __init__(self, config: ModelConfig, weights: Params, group_size: int, mesh: Mesh | None):
        self.config, self.weights, self.group_size, self.mesh = config, weights, group_size, mesh
        self.groups = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        specs = Spec(), Spec(GROUP_AXES), Spec(GROUP_AXES, "tensor")
        whole, rows, heads = (mesh and NamedSharding(mesh, spec) for spec in specs)
        # A state with shardings instead of arrays, which jit takes as a prefix of the result.
        caches: Any = {"prompts": heads, "responses": heads, "prefix": heads}
        fields: Any = [rows] * 6
        self._placed = EngineState(*fields, **caches)
        self.run = self._jit(self._run, donate_argnums=1)
        self._prefix = self._jit(partial(prefill_prefix, config), placed=(heads, rows))
        self._rows = jax.jit(_rows, out_shardings=whole)
        self._programs: dict[tuple[Any, ...], Callable[..., EngineState]] = {}

    @property
    def attention(self) -> DecodeAttention:
        """The fastest on the devices of the weights, which need not be those of this machine."""
        if self.mesh is not None:
            device = self.mesh.devices.flat[0]
        else:
            (device,) = self.weights["embed"]["embedding"].sharding.device_set
        if device.platform != "tpu":
            return masked
        return LiveAttention(None if self.mesh is None else "tensor")

    def _run(self, *args: Any) -> EngineState:
        return run_decode_loop(self.config, *args, attention=self.attention)

    def new_state(
        self, *, entries: int, prompts: int, width: int, max_new_tokens: int, slots: int
    ) -> EngineState:
        """An empty state. Sizes are per data group; `prompts` is the largest number of them."""
        build = self._build(cache_bucket(1), prompts, max_new_tokens, slots)
        requests = Requests.empty(entries * self.groups, width, MAX_STOP_IDS)
        return build(self.place(requests))

    def shapes(
        self,
        *,
        cache_length: int,
        entries: int,
        prompts: int,
        width: int,
        max_new_tokens: int,
        slots: int,
    ) -> EngineState:
        """A state of shapes with shardings, to compile without devices.

        Arguments are those of `new_state`, and the length of the KV ring buffer.
        """
        build = self._build(cache_length, prompts, max_new_tokens, slots)
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

    def _build(self, cache_length: int, prompts: int, max_new_tokens: int, slots: int) -> Any:
        G = self.group_size
        return self._compiled(
            init_state,
            self.config,
            group_size=G,
            slots=slots,
            # A prompt slot is held until its last sample ends. Spare ones keep the other slots
            # busy until then.
            prompt_slots=slots if G == 1 else min(slots, prompts, 2 * -(-slots // G) + 1),
            cache_length=cache_length,
            max_new_tokens=max_new_tokens,
            dtype=self.weights["embed"]["embedding"].dtype,
        )

    def with_prefix(self, state: EngineState, tokens: Sequence[int]) -> EngineState:
        """A new state in which every data group has computed this prefix."""
        padded = np.zeros(prompt_width(len(tokens)), np.int32)
        padded[: len(tokens)] = tokens
        prefix, counters = self._prefix(self.weights, state.counters, padded, len(tokens))
        return replace(state, prefix=prefix, counters=counters)

    def resize(self, state: EngineState, cache_length: int, width: int) -> EngineState:
        same_width = width == state.requests.tokens.shape[1]
        program = self.resizing(cache_length, width, same_width)
        resized: EngineState = program(replace(state, responses=()), state.responses)
        return resized

    def resizing(self, cache_length: int, width: int, same_width: bool) -> Any:
        """The program (state without responses, responses) -> state in other sizes.

        If the prompts keep their width, the first argument is donated, so that only the responses
        are in memory twice.
        """
        key = (resize, cache_length, width, same_width)
        if key not in self._programs:
            self._programs[key] = self._jit(
                lambda rest, responses: resize(
                    replace(rest, responses=responses), cache_length=cache_length, width=width
                ),
                donate_argnums=0 if same_width else (),
            )
        return self._programs[key]

    def compact(self, state: EngineState, slots: int, cache_length: int) -> EngineState:
        return self._compiled(compact, slots=slots, cache_length=cache_length)(state)

    def place(self, tree: Any) -> Any:
        """Put arrays on the devices of the weights, with the first axis split over data groups."""
        if self.mesh is None:
            # Committed like the results of `run`; otherwise its second call would compile again.
            return to_devices(tree, self.weights["embed"]["embedding"].sharding)
        return to_devices(tree, NamedSharding(self.mesh, Spec(GROUP_AXES)))

    def read(self, tree: Any) -> Any:
        """Copy small arrays of the state to the host of every process."""
        return to_host(tree, self.mesh)

    def read_outputs(
        self, outputs: Outputs, rows: Int[np.ndarray, "n"]
    ) -> Iterator[tuple[Int[np.ndarray, "R"], Float[np.ndarray, "R 2"], Float[np.ndarray, "R"]]]:
        """Tokens, log-probabilities and logit differences of rows, in calls of a fixed size."""
        at_once = min(ROWS_AT_ONCE, outputs.length.shape[0])
        for start in range(0, len(rows), at_once):
            some = np.zeros(at_once, np.int32)
            wanted = rows[start : start + at_once]
            some[: len(wanted)] = wanted
            arrays = outputs.tokens, outputs.logprobs, outputs.logit_diffs
            read = jax.device_get(self._rows(arrays, some))
            yield from zip(*(array[: len(wanted)] for array in read), strict=True)

    def _compiled(self, function: Callable[..., EngineState], *fixed: Any, **sizes: Any) -> Any:
        """`function` with its static arguments, compiled on first use."""
        key = (function, *fixed, *sizes.items())
        if key not in self._programs:
            self._programs[key] = self._jit(partial(function, *fixed, **sizes))
        return self._programs[key]

    def _jit(self, function: Callable[..., Any], placed: Any = None, **options: Any) -> Any:
        """Compile a function that runs per data group and returns a state, or `placed` arrays."""
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
