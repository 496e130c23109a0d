"""The state of sampling: carried from step to step, and between compiled programs."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt32

from rmr1_jax.models.kv_cache import (
    KVCache,
    LayerCache,
    empty_cache,
    fit,
    fit_cache,
    resize_cache,
)
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.sampling.sampler import SamplingParams

IDLE = -1
NOT_WAITING = jnp.iinfo(jnp.int32).max


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Requests:
    """The queue: Q entries, each a prompt to be answered G times.

    The first `shared` tokens of a prompt are those of the state's prefix. The rest, 1 to P tokens,
    is in `tokens`. All of this is traced: new lengths, sampling parameters or stop ids never
    recompile.
    """

    arrival: Int[Array, "Q"]  # entries are admitted in this order; NOT_WAITING if admitted or empty
    tokens: Int[Array, "Q P"]
    length: Int[Array, "Q"]  # of `tokens`
    shared: Int[Array, "Q"]
    max_new_tokens: Int[Array, "Q"]
    stop_ids: Int[Array, "Q E"]  # padded with -1
    compare_ids: Int[Array, "Q 2"]  # two tokens whose logits are compared at every step
    seed: UInt32[Array, "Q"]
    index: Int[Array, "Q"]  # the prompt's identity in the random stream
    sampling: SamplingParams

    @staticmethod
    def empty(entries: int, prompt_length: int, stop_ids: int = 8) -> "Requests":
        def fill(value: float, dtype: DTypeLike = jnp.int32, *shape: int) -> Array:
            return jnp.full((entries, *shape), value, dtype)

        return Requests(
            arrival=fill(NOT_WAITING),
            tokens=fill(0, jnp.int32, prompt_length),
            length=fill(1),
            shared=fill(0),
            max_new_tokens=fill(1),
            stop_ids=fill(-1, jnp.int32, stop_ids),
            compare_ids=fill(0, jnp.int32, 2),
            seed=fill(0, jnp.uint32),
            index=fill(0),
            sampling=SamplingParams(
                temperature=fill(0, jnp.float32),
                top_p=fill(1, jnp.float32),
                top_k=fill(0),
                min_p=fill(0, jnp.float32),
            ),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptSlots:
    """The prompts whose keys and values are in the prompt cache."""

    entry: Int[Array, "prompt_slots"]
    next_sample: Int[Array, "prompt_slots"]  # the first sample without a slot; G if none waits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """The rows of the decode batch."""

    request: Int[Array, "S"]  # entry * G + sample, or IDLE
    prompt_slot: Int[Array, "S"]
    token: Int[Array, "S"]  # the next input
    written: Int[Array, "S"]  # tokens of this slot's response in the KV ring buffer
    # prompt_slot * queries_per_prompt_slot + rank -> slot, or S if there is none
    route: Int[Array, "routes"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outputs:
    """The samples, by request (entry * G + sample)."""

    tokens: Int[Array, "QG R"]
    logprobs: Float[Array, "QG R 2"]  # (untempered model, distribution drawn from)
    logit_diffs: Float[Array, "QG R"]  # logit of compare_ids[0] minus that of compare_ids[1]
    length: Int[Array, "QG"]
    finished: Int[Array, "QG"]  # RUNNING, STOPPED or CUT

    RUNNING, STOPPED, CUT = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Counters:
    """Exact amounts of work, for tests and metrics. A sharded run has one per data group."""

    steps: Int[Array, "1"]
    row_steps: Int[Array, "1"]  # steps x slots
    live_row_steps: Int[Array, "1"]  # row-steps that produced a token
    prefill_tokens: Int[Array, "1"]  # prompt positions computed, with the padding of last chunks

    @staticmethod
    def zero() -> "Counters":
        return Counters(*(jnp.zeros(1, jnp.int32) for _ in range(4)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EngineState:
    requests: Requests
    prompt_slots: PromptSlots
    slots: Slots
    outputs: Outputs
    counters: Counters
    write_position: Int[Array, "1"]  # where all slots write next in the KV ring buffer
    prompts: KVCache  # prompt slots x P positions
    responses: KVCache  # slots x C positions: the KV ring buffer
    prefix: KVCache = ()  # 1 x W positions: what prompts begin with; or empty

    @property
    def cache_length(self) -> int:
        return self.responses[0].length

    @property
    def group_size(self) -> int:
        return self.outputs.length.shape[0] // self.requests.length.shape[0]


def queries_per_prompt_slot(slots: int, group_size: int) -> int:
    """How many slots can answer one prompt at a time: a whole group, or all slots if fewer."""
    return min(slots, group_size)


def init_state(
    config: ModelConfig,
    requests: Requests,
    *,
    group_size: int,
    slots: int,
    prompt_slots: int,
    cache_length: int,
    max_new_tokens: int,
    dtype: DTypeLike,
) -> EngineState:
    """The state before anything is admitted. With G = 1, each slot has its own prompt slot."""
    if group_size == 1 and prompt_slots != slots:
        raise ValueError(
            f"with one sample per prompt, each slot has a prompt slot: {prompt_slots=} != {slots=}"
        )
    entries, prompt_length = requests.tokens.shape
    whole = lambda n, fill=0: jnp.full(n, fill, jnp.int32)  # noqa: E731
    return EngineState(
        requests=jax.tree.map(jnp.asarray, requests),
        prompt_slots=PromptSlots(
            entry=whole(prompt_slots), next_sample=whole(prompt_slots, group_size)
        ),
        slots=Slots(
            request=whole(slots, IDLE),
            prompt_slot=whole(slots),
            token=whole(slots),
            written=whole(slots),
            route=whole(prompt_slots * queries_per_prompt_slot(slots, group_size), slots),
        ),
        outputs=Outputs(
            tokens=whole((entries * group_size, max_new_tokens)),
            logprobs=jnp.zeros((entries * group_size, max_new_tokens, 2), jnp.float32),
            logit_diffs=jnp.zeros((entries * group_size, max_new_tokens), jnp.float32),
            length=whole(entries * group_size),
            finished=whole(entries * group_size),
        ),
        counters=Counters.zero(),
        write_position=whole(1),
        prompts=empty_cache(config, prompt_slots, prompt_length, dtype),
        responses=empty_cache(config, slots, cache_length, dtype),
    )


def resize(state: EngineState, *, cache_length: int, width: int) -> EngineState:
    """The same state with another cache length and prompt width.

    `cache_length` must hold the longest live response, `width` the longest live prompt without its
    part of the prefix.
    """
    everyone = jnp.arange(state.slots.request.shape[0])
    responses, write_position = resize_cache(
        state.responses, state.write_position[0], cache_length, everyone
    )
    return replace(
        state,
        responses=responses,
        write_position=write_position[None],
        requests=replace(state.requests, tokens=fit(state.requests.tokens, width, axis=1)),
        prompts=fit_cache(state.prompts, width),
    )


def compact(state: EngineState, *, slots: int, cache_length: int) -> EngineState:
    """A smaller batch for when nothing waits: only the live slots and their prompt slots.

    `slots` must hold the live slots, `cache_length` the longest live response.
    """
    G = state.group_size
    order = jnp.argsort(state.slots.request < 0, stable=True)[:slots]
    live = state.slots.request[order] >= 0
    if G == 1:  # slot i keeps prompt slot i
        prompt_slots, prompt_slot_of_slot = order, jnp.arange(slots)
    else:
        used = jnp.zeros(state.prompt_slots.entry.shape[0], bool)
        used = used.at[jnp.where(live, state.slots.prompt_slot[order], len(used))].set(
            True, mode="drop"
        )
        prompt_slots = jnp.argsort(~used, stable=True)[:slots]
        rank = jnp.argsort(jnp.argsort(~used, stable=True))
        prompt_slot_of_slot = rank[state.slots.prompt_slot[order]]
        prompt_slot_of_slot = jnp.where(live, prompt_slot_of_slot, 0)
    responses, write_position = resize_cache(
        state.responses, state.write_position[0], cache_length, order
    )
    compacted = Slots(
        request=state.slots.request[order],
        prompt_slot=prompt_slot_of_slot.astype(jnp.int32),
        token=state.slots.token[order],
        written=state.slots.written[order],
        route=jnp.zeros(0, jnp.int32),
    )
    return replace(
        state,
        prompt_slots=jax.tree.map(lambda x: x[prompt_slots], state.prompt_slots),
        slots=replace(compacted, route=routes(compacted, len(prompt_slots), G)),
        write_position=write_position[None],
        prompts=tuple(
            LayerCache(x.key[prompt_slots], x.value[prompt_slots]) for x in state.prompts
        ),
        responses=responses,
    )


def query_of_slot(slots: Slots, group_size: int) -> Int[Array, "S"]:
    """The index of each slot's query among the queries of all prompt slots."""
    S = slots.request.shape[0]
    per_prompt_slot = queries_per_prompt_slot(S, group_size)
    rank = slots.request % group_size if group_size <= S else jnp.arange(S)
    return slots.prompt_slot * per_prompt_slot + rank


def routes(slots: Slots, prompt_slots: int, group_size: int) -> Int[Array, "routes"]:
    """The inverse of `query_of_slot`: the slot of each query, or S if it has none."""
    S = slots.request.shape[0]
    total = prompt_slots * queries_per_prompt_slot(S, group_size)
    at = jnp.where(slots.request >= 0, query_of_slot(slots, group_size), total)
    return jnp.full(total, S, jnp.int32).at[at].set(jnp.arange(S, dtype=jnp.int32), mode="drop")
