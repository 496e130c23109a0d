"""The queue on the host: requests go in, finished samples come out."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from rmr1_jax.config import Sampling
from rmr1_jax.errors import UserError
from rmr1_jax.sampling.decode_programs import MAX_STOP_IDS, Programs, cache_bucket, prompt_width
from rmr1_jax.sampling.decode_state import NOT_WAITING, Counters, EngineState, Outputs, Requests

GREEDY = Sampling()
FinishReason = Literal["stop", "length"]
FINISH_REASONS: dict[int, FinishReason | None] = {
    Outputs.RUNNING: None,
    Outputs.STOPPED: "stop",
    Outputs.CUT: "length",
}
SHORTEST_PREFIX = 64  # tokens


@dataclass(frozen=True)
class Request:
    """One prompt to be answered `group_size` times."""

    tokens: list[int]
    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()
    compare_ids: tuple[int, int] = (0, 0)  # two tokens whose logits are compared at every step
    seed: int = 0
    index: int = 0  # the prompt's identity in the random stream
    sampling: Sampling = GREEDY


@dataclass(frozen=True)
class Sample:
    """One response, stop token included."""

    tokens: np.ndarray  # int32 [n]
    logprobs: np.ndarray  # fp32 [n], under the model at temperature 1, without truncation
    sampled_logprobs: np.ndarray  # fp32 [n], under the sampling distribution
    logit_diffs: np.ndarray  # fp32 [n], log-odds of the request's `compare_ids`, under the model
    finish_reason: FinishReason | None  # None while it is still growing


def queue_entries(slots: int, group_size: int) -> int:
    """How many requests a data group holds: twice as many as its slots can work on."""
    return max(2 * -(-slots // group_size), 4)


def common_length(tokens: Sequence[int], others: Sequence[int]) -> int:
    """The length of the common prefix."""
    pairs = zip(tokens, others, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(others)))


def worth_sharing(prefix: Sequence[int]) -> list[int]:
    """The prefix, or nothing if it is too short to be worth a program."""
    return list(prefix) if len(prefix) >= SHORTEST_PREFIX else []


class Entry(NamedTuple):
    """A request in the queue."""

    position: int  # in the source
    request: Request
    shared: int  # tokens taken from the prefix: never the last, which is the first input of slots

    @property
    def rest(self) -> list[int]:
        return self.request.tokens[self.shared :]


class HostSnapshot(NamedTuple):
    """A host copy of the state's small arrays, the same in every process."""

    arrival: Int[np.ndarray, "Q"]
    next_sample: Int[np.ndarray, "prompt_slots"]
    request: Int[np.ndarray, "S"]
    written: Int[np.ndarray, "S"]
    length: Int[np.ndarray, "QG"]
    finished: Int[np.ndarray, "QG"]
    counters: Counters

    @classmethod
    def of(cls, programs: Programs, state: EngineState) -> "HostSnapshot":
        on_devices = {
            "arrival": state.requests.arrival,
            "next_sample": state.prompt_slots.next_sample,
            "request": state.slots.request,
            "written": state.slots.written,
            "length": state.outputs.length,
            "finished": state.outputs.finished,
            "counters": state.counters,
        }
        return cls(**programs.read(on_devices))


class Queue:
    """Which entry of the state's queue holds which request.

    Call `sync` after each run of the state. What the host writes to the devices, it also writes to
    its `snapshot`.
    """

    def __init__(
        self,
        programs: Programs,
        requests: Iterable[Request],
        slots: int,
        max_new_tokens: int,
        prefix: Sequence[int] = (),
    ):
        """`slots` is per data group; fewer are made if there is not enough work."""
        self.programs, self.max_new_tokens, self.prefix = programs, max_new_tokens, tuple(prefix)
        G, groups = programs.group_size, programs.groups
        entries = queue_entries(slots, G)
        self.source = (
            Entry(position, request, common_length(request.tokens[:-1], self.prefix))
            for position, request in enumerate(requests)
        )
        self.ahead = list(itertools.islice(self.source, entries * groups))
        self.exhausted = len(self.ahead) < entries * groups
        self.entries: list[Entry | None] = []
        self.arrival_numbers = itertools.count()
        if self.ahead:
            width = _width_for(self.ahead)
            prompts = -(-len(self.ahead) // groups)
            self.entries = [None] * (entries * groups)
            self.state = programs.new_state(
                entries=entries,
                prompts=prompts,
                width=width,
                max_new_tokens=cache_bucket(max_new_tokens),
                slots=min(slots, prompts * G),
            )
            if self.prefix:
                self.state = programs.with_prefix(self.state, self.prefix)
            empty = Requests.empty(len(self.entries), width, MAX_STOP_IDS)
            # A host copy of the requests on the devices, apart from the arrivals.
            self.table: Any = jax.tree.map(np.array, empty)
            self.sync()

    def sync(self) -> None:
        self.snapshot = HostSnapshot.of(self.programs, self.state)

    @property
    def waiting(self) -> bool:
        pending = self.snapshot.next_sample < self.programs.group_size
        return bool(pending.any() or (self.snapshot.arrival != NOT_WAITING).any())

    @property
    def width(self) -> int:
        return self.state.requests.tokens.shape[1]

    def smallest_width(self) -> int:
        """The smallest prompt width for the present entries."""
        return _width_for(entry for entry in self.entries if entry)

    def refill(self) -> bool:
        """Put requests into free entries. False if there is nothing left to do."""
        free = [i for i, entry in enumerate(self.entries) if entry is None]
        # Deal over the data groups in turn.
        per_group = max(len(self.entries) // self.programs.groups, 1)
        free.sort(key=lambda i: (i % per_group, i))
        arrivals = list(zip(free, self._next(len(free)), strict=False))
        if arrivals:
            self._write(arrivals)
        return any(self.entries)

    def _next(self, most: int) -> list[Entry]:
        taken, self.ahead = self.ahead[:most], self.ahead[most:]
        more = list(itertools.islice(self.source, most - len(taken)))
        if len(taken) + len(more) < most:
            self.exhausted = True
        return taken + more

    def _write(self, arrivals: list[tuple[int, Entry]]) -> None:
        width = _width_for(entry for _, entry in arrivals)
        if width > self.width:
            self.state = self.programs.resize(self.state, self.state.cache_length, width)
        snapshot, G = self.snapshot, self.programs.group_size
        table = replace(
            self.table, arrival=snapshot.arrival, tokens=self._fitted(self.table.tokens)
        )
        for slot, entry in arrivals:
            request, rest = entry.request, entry.rest
            self._check(entry.position, request)
            self.entries[slot] = entry
            table.tokens[slot] = 0
            table.tokens[slot, : len(rest)] = rest
            table.length[slot], table.shared[slot] = len(rest), entry.shared
            table.arrival[slot] = next(self.arrival_numbers)
            table.stop_ids[slot] = -1
            table.stop_ids[slot, : len(request.stop_ids)] = request.stop_ids
            table.seed[slot] = np.uint32(request.seed & 0xFFFFFFFF)
            table.compare_ids[slot] = request.compare_ids
            table.max_new_tokens[slot], table.index[slot] = request.max_new_tokens, request.index
            for name, values in table.sampling._asdict().items():
                values[slot] = getattr(request.sampling, name)
            snapshot.finished[slot * G : (slot + 1) * G] = Outputs.RUNNING
            snapshot.length[slot * G : (slot + 1) * G] = 0
        self.table = table
        # Copies, because an array on a CPU device may share the host's memory.
        written = jax.tree.map(np.copy, (table, snapshot.finished, snapshot.length))
        requests, finished, length = self.programs.place(written)
        self.state = replace(
            self.state,
            requests=requests,
            outputs=replace(self.state.outputs, finished=finished, length=length),
        )

    def _fitted(self, tokens: Int[np.ndarray, "Q P"]) -> Int[np.ndarray, "Q width"]:
        """Fit the tokens of all entries to the width of the state, which may have changed."""
        fitted = np.zeros((len(tokens), self.width), np.int32)
        common = min(tokens.shape[1], self.width)
        fitted[:, :common] = tokens[:, :common]
        return fitted

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
        if total > self.programs.config.max_position:
            raise UserError(
                f"request {position}: {len(request.tokens)} prompt tokens + "
                f"{request.max_new_tokens} new ones are more than the model's context of "
                f"{self.programs.config.max_position}; shorten one of them"
            )
        if len(request.stop_ids) > MAX_STOP_IDS:
            raise UserError(f"{len(request.stop_ids)} stop ids; at most {MAX_STOP_IDS} can be used")

    def collect_finished(self) -> Iterator[tuple[int, list[Sample]]]:
        """Take out the entries whose samples have all finished."""
        G = self.programs.group_size
        done = (self.snapshot.finished.reshape(-1, G) != Outputs.RUNNING).all(-1)
        taken = [
            (slot, entry.position)
            for slot, entry in enumerate(self.entries)
            if entry is not None and done[slot]
        ]
        rows = [slot * G + g for slot, _ in taken for g in range(G)]
        samples = self._samples(np.array(rows, np.int32))
        for slot, position in taken:
            self.entries[slot] = None
            yield position, list(itertools.islice(samples, G))

    def sample(self, slot: int, index: int) -> Sample:
        """One sample of an entry, as far as it has grown."""
        [sample] = self._samples(np.array([slot * self.programs.group_size + index]))
        return sample

    def _samples(self, rows: Int[np.ndarray, "n"]) -> Iterator[Sample]:
        read = self.programs.read_outputs(self.state.outputs, rows)
        for row, (tokens, logprobs, logit_diffs) in zip(rows, read, strict=True):
            length = int(self.snapshot.length[row])
            # Copies, so that a sample does not keep all rows that were read with it in memory.
            yield Sample(
                tokens=tokens[:length].copy(),
                logprobs=logprobs[:length, 0].copy(),
                sampled_logprobs=logprobs[:length, 1].copy(),
                logit_diffs=logit_diffs[:length].copy(),
                finish_reason=FINISH_REASONS[int(self.snapshot.finished[row])],
            )


def _width_for(entries: Iterable[Entry]) -> int:
    """The prompt width for these prompts without their part of the prefix."""
    return prompt_width(max((len(entry.rest) for entry in entries), default=1))
