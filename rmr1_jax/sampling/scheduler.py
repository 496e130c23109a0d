"""The host's side of the engine: chooses the shapes, and hands out what is finished.

The same compiled `run` serves one prompt on a terminal and a file of a million. Between two calls
the host may change three sizes, each from a short ladder so that few programs are ever compiled:
the ring (the longest live response), the prompt width (the longest live prompt), and, when nothing
waits any more, the number of slots.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jax.sharding import Mesh

from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.sampling.decode_programs import Programs, cache_length
from rmr1_jax.sampling.decode_state import EngineState
from rmr1_jax.sampling.request_queue import Queue, Request, Sample

__all__ = ["Request", "Sample", "Scheduler", "Work"]


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


def few(slots: int) -> int:
    """With no more live slots than this, a smaller batch is worth a program of its own."""
    return max(slots // 4, 1) if slots > 1 else 0


class Scheduler:
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
          requests: consumed lazily, a queue's length ahead.
          max_new_tokens: no request may ask for more.
          after_chunk: called after every chunk with the work of this call so far.
          prefix: tokens that prompts begin with. Their KV is computed once a call; each prompt
            takes over as much of it as it has in common, and computes the rest.
        """
        for queue in self._chunks(requests, max_new_tokens, prefix):
            if after_chunk:
                after_chunk(self.work)
            yield from queue.collect_finished()

    def stream(self, request: Request) -> Iterator[Sample]:
        """Yield sample 0 of one request as it grows; its last `finish_reason` is not None."""
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
            state = self._fit(queue)
            drained = self._drained_slots(queue, state)
            queue.state = self.programs.run(self.programs.weights, state, self.chunk_steps, drained)
            queue.sync()
            self._count(queue)
            yield queue

    def _fit(self, queue: Queue) -> EngineState:
        """The state in the shapes that what is live, and what waits, needs now."""
        state, groups = queue.state, self.programs.groups
        live = queue.view.request.reshape(groups, -1) >= 0
        longest = int(queue.view.written[live.ravel()].max(initial=0))
        columns, width = cache_length(longest + 1), queue.smallest_width()
        # Another size is another program to compile: shrink only for a large gain.
        if columns > state.columns // 4:
            columns = max(columns, state.columns)
        if width > queue.width // 4:
            width = max(width, queue.width)
        slots = live.shape[1]
        if queue.exhausted and not queue.waiting:
            while slots > 1 and live.sum(-1).max() <= few(slots):
                slots = few(slots)
        if slots != live.shape[1]:
            state = self.programs.compact(state, slots, columns)
        if (columns, width) != (state.columns, queue.width):
            state = self.programs.resize(state, columns, width)
        self.work.programs.add((slots * groups, columns, width))
        return state

    def _drained_slots(self, queue: Queue, state: EngineState) -> int:
        """Return when few slots are live; or when one is free, if more requests may come."""
        slots = state.slots.request.shape[0] // self.programs.groups
        if queue.exhausted:
            # A group that returned for the host to make it smaller would wait for the others.
            return few(slots) if self.programs.groups == 1 else 0
        return slots - 1 if queue.waiting else 0  # 0: the queue is full of unfinished groups

    def _count(self, queue: Queue) -> None:
        counters = queue.view.counters
        self.work.steps += int(counters.steps.max())
        self.work.row_steps += int(counters.row_steps.sum())
        self.work.live_row_steps += int(counters.live_row_steps.sum())
        self.work.prefill_tokens += int(counters.prefill_tokens.sum())
        self.work.running = int((queue.view.request >= 0).sum())
        zero = self.programs.place(jax.tree.map(np.zeros_like, counters))
        queue.state = replace(queue.state, counters=zero)
