"""The host's side of the engine: fills the queue, chooses the shapes, hands out what is finished.

The same compiled `run` serves one prompt on a terminal and a file of a million. Between two calls
the host may change three sizes, each from a short ladder so that few programs are ever compiled:
the ring (the longest live response), the prompt width (the longest live prompt), and, when nothing
waits any more, the number of slots.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from rmr1_jax.errors import UserError
from rmr1_jax.models.config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.sampling.engine import run
from rmr1_jax.sampling.state import (
    NOT_WAITING,
    EngineState,
    Outputs,
    Requests,
    compact,
    init_state,
    resize,
)

FinishReason = Literal["stop", "length"]
FINISH_REASONS: dict[int, FinishReason | None] = {
    Outputs.RUNNING: None,
    Outputs.STOPPED: "stop",
    Outputs.CUT: "length",
}
MAX_STOP_IDS = 8


@dataclass(frozen=True)
class Request:
    """One prompt to be answered `group_size` times."""

    tokens: list[int]
    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()
    seed: int = 0
    index: int = 0  # the prompt's identity in the random stream
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True)
class Sample:
    """One response, stop token included."""

    tokens: np.ndarray  # int32 [n]
    logprobs: np.ndarray  # fp32 [n], under the model at temperature 1, untruncated
    sampled_logprobs: np.ndarray  # fp32 [n], under the distribution that was drawn from
    finish_reason: FinishReason | None  # None while it is being written


@dataclass
class Work:
    """What the engine has done, exactly."""

    steps: int = 0
    row_steps: int = 0
    live_row_steps: int = 0
    prefill_tokens: int = 0
    running: int = 0  # slots that are live now
    programs: set[tuple[int, int, int]] = field(default_factory=set)  # (slots, ring, prompt width)

    @property
    def occupancy(self) -> float:
        """Live rows over all rows, over all steps."""
        return self.live_row_steps / max(self.row_steps, 1)


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


def few(slots: int) -> int:
    """With no more live slots than this, a smaller batch is worth a program of its own."""
    return max(slots // 4, 1) if slots > 1 else 0


class Engine:
    """Samples any number of requests through a fixed number of slots.

    Args:
      config: the model's.
      weights: from `unstack_layers`, placed with the decoding rules when there is a mesh.
      slots: rows of the decode batch, over all data groups.
      group_size: samples of each request.
      mesh: data and fsdp axes split the slots into independent groups, tensor splits heads.
      chunk_steps: decode steps between two looks of the host.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Params,
        *,
        slots: int,
        group_size: int = 1,
        mesh: Mesh | None = None,
        chunk_steps: int = 64,
    ):
        self.config, self.weights, self.mesh = config, weights, mesh
        self.groups = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        self.slots = -(-slots // self.groups)  # of one data group, like all sizes below
        self.group_size, self.chunk_steps = group_size, chunk_steps
        self.dtype = weights["embed"]["embedding"].dtype
        self.work = Work()
        self._run = jax.jit(self._local(partial(run, config)), donate_argnums=1)
        # jit keeps one program for each of the static sizes that `resize` and `compact` are given.
        self._reshape: dict[tuple, Callable[[EngineState], EngineState]] = {}

    def generate(
        self,
        requests: Iterable[Request],
        *,
        max_new_tokens: int,
        after_chunk: Callable[[Work], None] | None = None,
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yield (position in `requests`, its samples) as they finish.

        Args:
          requests: consumed lazily, a queue's length ahead.
          max_new_tokens: no request may ask for more.
          after_chunk: called after every chunk with the work of this call so far.
        """
        for table in self._chunks(requests, max_new_tokens):
            yield from table.harvest()
            if after_chunk:
                after_chunk(self.work)

    def stream(self, request: Request) -> Iterator[Sample]:
        """Yield sample 0 of one request as it grows; its last `finish_reason` is not None."""
        for table in self._chunks([request], request.max_new_tokens):
            yield table.sample(0, 0)
            for _ in table.harvest():
                pass

    def _chunks(self, requests: Iterable[Request], max_new_tokens: int) -> Iterator["_Table"]:
        self.work = Work()
        table = _Table(self, iter(enumerate(requests)), max_new_tokens)
        while table.refill():
            state = self._fit(table)
            drained = self._drained_slots(table, state)
            table.state = self._run(self.weights, state, self.chunk_steps, drained)
            self._count(table)
            yield table

    def _fit(self, table: "_Table") -> EngineState:
        """The state in the shapes that what is live, and what waits, needs now."""
        live = np.asarray(table.state.slots.request).reshape(self.groups, -1) >= 0
        most_live = int(live.sum(-1).max())
        longest = int(np.asarray(table.state.slots.written)[live.ravel()].max(initial=0))
        columns = ring_size(longest + 1)
        width = prompt_width(table.longest_prompt())
        # Another size is another program to compile: shrink only for a large gain.
        if columns > table.state.columns // 4:
            columns = max(columns, table.state.columns)
        if width > table.width // 4:
            width = max(width, table.width)
        slots = live.shape[1]
        if table.exhausted and not table.waiting:
            while slots > 1 and most_live <= few(slots):
                slots = few(slots)
        state = table.state
        if slots != live.shape[1]:
            state = self._reshaped(compact, slots=slots, columns=columns)(state)
        if (columns, width) != (state.columns, table.width):
            state = self._reshaped(resize, columns=columns, width=width)(state)
        self.work.programs.add((slots * self.groups, columns, width))
        return state

    def _drained_slots(self, table: "_Table", state: EngineState) -> int:
        """Return when few slots are live; or when one is free, if more requests may come."""
        slots = state.slots.request.shape[0] // self.groups
        if table.exhausted:
            return few(slots)
        return slots - 1 if table.waiting else 0  # 0: the queue is full of unfinished groups

    def _count(self, table: "_Table") -> None:
        total = jax.tree.map(lambda x: int(np.asarray(x).sum()), table.state.counters)
        self.work.steps += int(np.asarray(table.state.counters.steps).max())
        self.work.row_steps += total.row_steps
        self.work.live_row_steps += total.live_row_steps
        self.work.prefill_tokens += total.prefill_tokens
        self.work.running = int((np.asarray(table.state.slots.request) >= 0).sum())
        zero = jax.tree.map(np.zeros_like, jax.device_get(table.state.counters))
        table.state = replace(table.state, counters=self.place(zero))

    def _reshaped(self, function: Callable, **sizes: int) -> Callable[[EngineState], EngineState]:
        key = (function, *sizes.items())
        if key not in self._reshape:
            self._reshape[key] = jax.jit(self._local(partial(function, **sizes)))
        return self._reshape[key]

    def _local(self, function: Callable) -> Callable:
        """Each data group runs its own queue; nothing crosses between groups."""
        if self.mesh is None:
            return function
        by_group = Spec(("data", "fsdp"))

        def mapped(*args: Any) -> EngineState:
            specs = tuple(by_group if isinstance(a, EngineState) else Spec() for a in args)
            return jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=specs,
                out_specs=by_group,
                axis_names={"data", "fsdp"},
                check_vma=False,
            )(*args)

        return mapped

    def place(self, tree: Any) -> Any:
        """Arrays onto the devices of the weights, their leading axis split over the data groups."""
        if self.mesh is None:
            # Committed, as what `run` returns is: or its second call would be lowered again.
            return jax.device_put(tree, self.weights["embed"]["embedding"].sharding)
        return jax.device_put(tree, NamedSharding(self.mesh, Spec(("data", "fsdp"))))

    def new_state(self, entries: int, width: int, max_new_tokens: int, slots: int) -> EngineState:
        """An empty state, `entries` and `slots` of one data group."""
        G = self.group_size
        # A lane is held until its last sample ends: spare lanes keep slots busy meanwhile.
        lanes = slots if G == 1 else min(slots, 2 * -(-slots // G) + 1)

        def build(requests: Requests) -> EngineState:
            return init_state(
                self.config,
                requests,
                group_size=G,
                slots=slots,
                lanes=lanes,
                columns=ring_size(1),
                max_new_tokens=max_new_tokens,
                dtype=self.dtype,
            )

        requests = self.place(Requests.empty(entries * self.groups, width, MAX_STOP_IDS))
        if self.mesh is None:
            return jax.jit(build)(requests)
        by_group = Spec(("data", "fsdp"))
        return jax.jit(
            jax.shard_map(
                build,
                mesh=self.mesh,
                in_specs=by_group,
                out_specs=by_group,
                axis_names={"data", "fsdp"},
                check_vma=False,
            )
        )(requests)


class _Table:
    """The queue as the host sees it: which entry holds which request."""

    def __init__(self, engine: Engine, source: Iterator[tuple[int, Request]], max_new_tokens: int):
        self.engine, self.source = engine, source
        self.max_new_tokens = max_new_tokens
        G, groups = engine.group_size, engine.groups
        entries = max(2 * -(-engine.slots // G), 4)
        ahead = list(itertools.islice(source, entries * groups))
        self.exhausted = len(ahead) < entries * groups
        self.ahead: list[tuple[int, Request]] = ahead
        self.entries: list[tuple[int, Request] | None] = []
        self.tickets = itertools.count()
        if ahead:
            width = prompt_width(max(len(r.tokens) for _, r in ahead))
            slots = min(engine.slots, max(1, -(-len(ahead) * G // groups)))
            self.entries = [None] * (entries * groups)
            longest = ring_size(max_new_tokens)
            self.state = engine.new_state(entries, width, longest, slots)

    @property
    def waiting(self) -> bool:
        pending = np.asarray(self.state.lanes.next_sample) < self.engine.group_size
        tickets = np.asarray(self.state.requests.ticket)
        return bool(pending.any() or (tickets != NOT_WAITING).any())

    @property
    def width(self) -> int:
        return self.state.requests.tokens.shape[1]

    def longest_prompt(self) -> int:
        return max(len(entry[1].tokens) for entry in self.entries if entry)

    def refill(self) -> bool:
        """Put requests into free entries; False when there is nothing left to do."""
        free = [i for i, entry in enumerate(self.entries) if entry is None]
        # Deal over the data groups in turn.
        per_group = max(len(self.entries) // self.engine.groups, 1)
        free.sort(key=lambda i: (i % per_group, i))
        arrivals = list(zip(free, self._next(len(free)), strict=False))
        if arrivals:
            self._write(arrivals)
        return any(self.entries)

    def _next(self, most: int) -> list[tuple[int, Request]]:
        taken, self.ahead = self.ahead[:most], self.ahead[most:]
        more = list(itertools.islice(self.source, most - len(taken)))
        if len(taken) + len(more) < most:
            self.exhausted = True
        return taken + more

    def _write(self, arrivals: list[tuple[int, tuple[int, Request]]]) -> None:
        width = prompt_width(max(len(r.tokens) for _, (_, r) in arrivals))
        if width > self.width:
            resized = self.engine._reshaped(resize, columns=self.state.columns, width=width)
            self.state = resized(self.state)
        table = jax.tree.map(lambda x: np.array(x), self.state.requests)
        finished = np.array(self.state.outputs.finished)
        length = np.array(self.state.outputs.length)
        for slot, (position, request) in arrivals:
            self._check(position, request)
            self.entries[slot] = (position, request)
            tokens = np.zeros(self.width, np.int32)
            tokens[: len(request.tokens)] = request.tokens
            table.tokens[slot] = tokens
            table.length[slot] = len(request.tokens)
            table.ticket[slot] = next(self.tickets)
            table.stop_ids[slot] = -1
            table.stop_ids[slot, : len(request.stop_ids)] = request.stop_ids
            table.seed[slot] = np.uint32(request.seed & 0xFFFFFFFF)
            for name in ("max_new_tokens", "index", "temperature", "top_p", "top_k", "min_p"):
                getattr(table, name)[slot] = getattr(request, name)
            G = self.engine.group_size
            finished[slot * G : (slot + 1) * G] = Outputs.RUNNING
            length[slot * G : (slot + 1) * G] = 0
        self.state = replace(
            self.state,
            requests=self.engine.place(table),
            outputs=replace(
                self.state.outputs,
                finished=self.engine.place(finished),
                length=self.engine.place(length),
            ),
        )

    def _check(self, position: int, request: Request) -> None:
        total = len(request.tokens) + request.max_new_tokens
        if not request.tokens or request.max_new_tokens < 1:
            raise UserError(
                f"request {position}: {len(request.tokens)} prompt tokens and max_new_tokens "
                f"{request.max_new_tokens}: both must be at least 1"
            )
        if request.max_new_tokens > self.max_new_tokens:
            raise UserError(
                f"request {position} asks for {request.max_new_tokens} new tokens, "
                f"this run allows {self.max_new_tokens}"
            )
        if total > self.engine.config.max_position:
            raise UserError(
                f"request {position}: {len(request.tokens)} prompt tokens + "
                f"{request.max_new_tokens} new ones are more than the model's context of "
                f"{self.engine.config.max_position}; shorten one of them"
            )
        if len(request.stop_ids) > MAX_STOP_IDS:
            raise UserError(f"{len(request.stop_ids)} stop ids; at most {MAX_STOP_IDS} can be used")

    def harvest(self) -> Iterator[tuple[int, list[Sample]]]:
        """Take the entries whose samples have all finished."""
        G = self.engine.group_size
        finished = np.asarray(self.state.outputs.finished).reshape(-1, G) != Outputs.RUNNING
        for slot, entry in enumerate(self.entries):
            if entry is not None and finished[slot].all():
                samples = [self.sample(slot, g) for g in range(G)]
                self.entries[slot] = None
                yield entry[0], samples

    def sample(self, slot: int, index: int) -> Sample:
        """What one sample of an entry has written so far."""
        row = slot * self.engine.group_size + index
        outputs = self.state.outputs
        length, finished = (int(np.asarray(x)[row]) for x in (outputs.length, outputs.finished))
        tokens, logprobs = jax.device_get(_row(outputs, row))
        return Sample(
            tokens=tokens[:length],
            logprobs=logprobs[:length, 0],
            sampled_logprobs=logprobs[:length, 1],
            finish_reason=FINISH_REASONS[finished],
        )


@jax.jit
def _row(outputs: Outputs, row: int) -> tuple[jax.Array, jax.Array]:
    return outputs.tokens[row], outputs.logprobs[row]
