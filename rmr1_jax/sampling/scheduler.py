"""The scheduler: runs the decode loop from the host, chooses its sizes, and yields samples.

The same compiled decode loop serves one prompt on a terminal and a file of a million. Between two
calls the host may change three sizes, each from a short list so that few programs are compiled: the
cache length (for the longest live response), the prompt width (for the longest live prompt) and,
once nothing waits, the number of slots.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jax.sharding import Mesh

from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.sampling.decode_programs import Programs, cache_bucket
from rmr1_jax.sampling.decode_state import EngineState
from rmr1_jax.sampling.request_queue import Queue, Request, Sample

__all__ = ["Request", "Sample", "Scheduler", "Work"]


@dataclass
class Work:
    """Exact amounts of work done."""

    steps: int = 0
    row_steps: int = 0
    live_row_steps: int = 0
    prefill_tokens: int = 0
    running: int = 0  # live slots after the last chunk
    programs: set[tuple[int, int, int]] = field(
        default_factory=set
    )  # (slots, cache length, prompt width)

    @property
    def occupancy(self) -> float:
        """The share of row-steps that produced a token."""
        return self.live_row_steps / max(self.row_steps, 1)


def compact_size(slots: int) -> int:
    """How few slots must be live for a smaller batch to be worth another program."""
    return max(slots // 4, 1) if slots > 1 else 0


class Scheduler:
    """Samples any number of requests through a fixed number of slots.

    Args:
      config: the model's.
      weights: from `unstack_layers`, placed with the decoding rules when there is a mesh.
      slots: rows of the decode batch, in total over all data groups.
      group_size: samples per request.
      mesh: data and fsdp split the slots into independent groups, tensor splits the heads.
      chunk_steps: the most decode steps between two calls from the host.
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
        self.programs = Programs(config, weights, group_size, mesh)
        self.slots = -(-slots // self.programs.groups)  # of one data group
        self.chunk_steps = chunk_steps
        self.work = Work()

    def generate(
        self,
        requests: Iterable[Request],
        *,
        max_new_tokens: int,
        after_chunk: Callable[[Work], None] | None = None,
        prefix: Sequence[int] = (),
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yield (position in `requests`, its samples) as they finish.

        Args:
          requests: read lazily, one queue length ahead.
          max_new_tokens: the most that any request asks for.
          after_chunk: called after every chunk with the work of this call so far.
          prefix: tokens that prompts begin with. Their KV is computed once per call. Each prompt
            uses as much of it as it shares, and computes the rest.
        """
        for queue in self._chunks(requests, max_new_tokens, prefix):
            if after_chunk:
                after_chunk(self.work)
            yield from queue.collect_finished()

    def stream(self, request: Request) -> Iterator[Sample]:
        """Yield sample 0 of a request as it grows. The last one has a `finish_reason`."""
        for queue in self._chunks([request], request.max_new_tokens):
            yield queue.sample(0, 0)
            for _ in queue.collect_finished():
                pass

    def _chunks(
        self, requests: Iterable[Request], max_new_tokens: int, prefix: Sequence[int] = ()
    ) -> Iterator[Queue]:
        self.work = Work()
        queue = Queue(self.programs, requests, self.slots, max_new_tokens, prefix)
        while queue.refill():
            state = self._resized(queue)
            drained = self._drained_slots(queue, state)
            queue.state = self.programs.run(self.programs.weights, state, self.chunk_steps, drained)
            queue.sync()
            self._count(queue)
            yield queue

    def _resized(self, queue: Queue) -> EngineState:
        """The state in the sizes that its live and waiting requests need."""
        state, groups = queue.state, self.programs.groups
        live = queue.snapshot.request.reshape(groups, -1) >= 0
        longest = int(queue.snapshot.written[live.ravel()].max(initial=0))
        cache_length, width = cache_bucket(longest + 1), queue.smallest_width()
        # Each size is another program to compile, so shrink only for a large gain.
        if cache_length > state.cache_length // 4:
            cache_length = max(cache_length, state.cache_length)
        if width > queue.width // 4:
            width = max(width, queue.width)
        slots = live.shape[1]
        if queue.exhausted and not queue.waiting:
            while slots > 1 and live.sum(-1).max() <= compact_size(slots):
                slots = compact_size(slots)
        if slots != live.shape[1]:
            state = self.programs.compact(state, slots, cache_length)
        if (cache_length, width) != (state.cache_length, queue.width):
            state = self.programs.resize(state, cache_length, width)
        self.work.programs.add((slots * groups, cache_length, width))
        return state

    def _drained_slots(self, queue: Queue, state: EngineState) -> int:
        """Stop when few slots are live, or as soon as one is free if more requests may come."""
        slots = state.slots.request.shape[0] // self.programs.groups
        if queue.exhausted:
            # A data group that stopped to be compacted would wait for the others.
            return compact_size(slots) if self.programs.groups == 1 else 0
        return slots - 1 if queue.waiting else 0  # 0: all entries of the queue are unfinished

    def _count(self, queue: Queue) -> None:
        counters = queue.snapshot.counters
        self.work.steps += int(counters.steps.max())
        self.work.row_steps += int(counters.row_steps.sum())
        self.work.live_row_steps += int(counters.live_row_steps.sum())
        self.work.prefill_tokens += int(counters.prefill_tokens.sum())
        self.work.running = int((queue.snapshot.request >= 0).sum())
        zero = self.programs.place(jax.tree.map(np.zeros_like, counters))
        queue.state = replace(queue.state, counters=zero)
