"""What the engine carries from step to step, and from one compiled program to the next."""

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
    fit_columns,
    resize_cache,
)
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.sampling.sampler import SamplingParams

IDLE = -1
NOT_WAITING = jnp.iinfo(jnp.int32).max


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Requests:
    """The queue: Q entries, each one prompt that wants G samples.

    A prompt begins with `shared` tokens of the state's prefix; the rest, P tokens at the most and
    one at the least, is `tokens`. Everything here is traced: new lengths, sampling parameters or
    stop ids never recompile.
    """

    arrival: Int[Array, "Q"]  # entries are admitted in this order; else NOT_WAITING
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
    """Prompts whose KV is in the prompt cache."""

    entry: Int[Array, "prompt_slots"]
    next_sample: Int[
        Array, "prompt_slots"
    ]  # samples before it have a slot or are finished; G: none waits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """Rows of the decode batch."""

    request: Int[Array, "S"]  # entry * G + sample, or IDLE
    prompt_slot: Int[Array, "S"]
    token: Int[Array, "S"]  # the next input
    written: Int[Array, "S"]  # columns of the ring that are this slot's
    route: Int[
        Array, "routes"
    ]  # prompt_slot * queries_per_prompt_slot + rank -> slot, or S where nobody asks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outputs:
    """What was sampled, by request (entry * G + sample)."""

    tokens: Int[Array, "QG R"]
    logprobs: Float[Array, "QG R 2"]  # (untempered model, distribution drawn from)
    logit_diffs: Float[Array, "QG R"]  # logit of the first of `compare_ids` less that of the second
    length: Int[Array, "QG"]
    finished: Int[Array, "QG"]  # RUNNING, STOPPED or CUT

    RUNNING, STOPPED, CUT = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Counters:
    """Exact work done, for tests and metrics; a sharded run holds one of each a data group."""

    steps: Int[Array, "1"]
    row_steps: Int[Array, "1"]  # steps x slots
    live_row_steps: Int[Array, "1"]  # row-steps that produced a token
    prefill_tokens: Int[Array, "1"]  # prompt positions computed, padding of the last chunk included

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
    write_position: Int[Array, "1"]  # next column of the ring
    prompts: KVCache  # prompt slots x P columns
    responses: KVCache  # slots x C columns, a ring
    prefix: KVCache = ()  # 1 x W columns: what prompts begin with, computed once; or nothing

    @property
    def columns(self) -> int:
        return self.responses[0].columns

    @property
    def group_size(self) -> int:
        return self.outputs.length.shape[0] // self.requests.length.shape[0]


def queries_per_prompt_slot(slots: int, group_size: int) -> int:
    """How many slots can ask one prompt slot at a time: a whole group, or all slots if fewer."""
    return min(slots, group_size)


def init_state(
    config: ModelConfig,
    requests: Requests,
    *,
    group_size: int,
    slots: int,
    prompt_slots: int,
    columns: int,
    max_new_tokens: int,
    dtype: DTypeLike,
) -> EngineState:
    """Nothing admitted yet. With G = 1, `prompt_slots` must equal `slots`: they are one."""
    if group_size == 1 and prompt_slots != slots:
        raise ValueError(
            f"with one sample a prompt every slot has its prompt_slot: {prompt_slots=} != {slots=}"
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
        responses=empty_cache(config, slots, columns, dtype),
    )


def resize(state: EngineState, *, columns: int, width: int | None = None) -> EngineState:
    """The same state with another ring, and prompts of another width.

    Both must hold what is live: `columns` the longest response so far, `width` the longest prompt
    without what it shares.
    """
    everyone = jnp.arange(state.slots.request.shape[0])
    responses, write_position = resize_cache(
        state.responses, state.write_position[0], columns, everyone
    )
    state = replace(state, responses=responses, write_position=write_position[None])
    if width is None:
        return state
    return replace(
        state,
        requests=replace(state.requests, tokens=fit(state.requests.tokens, width, axis=1)),
        prompts=fit_columns(state.prompts, width),
    )


def compact(state: EngineState, *, slots: int, columns: int) -> EngineState:
    """The live slots and their prompt slots alone, once nothing waits: a small batch.

    `slots` must hold the live slots, `columns` the longest response so far.
    """
    G = state.group_size
    order = jnp.argsort(state.slots.request < 0, stable=True)[:slots]
    live = state.slots.request[order] >= 0
    if G == 1:  # slot i keeps prompt slot i
        prompt_slots, lane_of_slot = order, jnp.arange(slots)
    else:
        used = jnp.zeros(state.prompt_slots.entry.shape[0], bool)
        used = used.at[jnp.where(live, state.slots.prompt_slot[order], len(used))].set(
            True, mode="drop"
        )
        prompt_slots = jnp.argsort(~used, stable=True)[:slots]
        lane_of_slot = jnp.argsort(jnp.argsort(~used, stable=True))[state.slots.prompt_slot[order]]
        lane_of_slot = jnp.where(live, lane_of_slot, 0)
    responses, write_position = resize_cache(
        state.responses, state.write_position[0], columns, order
    )
    compacted = Slots(
        request=state.slots.request[order],
        prompt_slot=lane_of_slot.astype(jnp.int32),
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


def slot_of_query(slots: Slots, group_size: int) -> Int[Array, "S"]:
    """Where each slot's query stands among the queries of all prompt slots."""
    S = slots.request.shape[0]
    per_lane = queries_per_prompt_slot(S, group_size)
    rank = slots.request % group_size if group_size <= S else jnp.arange(S)
    return slots.prompt_slot * per_lane + rank


def routes(slots: Slots, prompt_slots: int, group_size: int) -> Int[Array, "routes"]:
    """The inverse of `slot_of_query`: which slot asks each (prompt slot, rank); S for none."""
    S = slots.request.shape[0]
    total = prompt_slots * queries_per_prompt_slot(S, group_size)
    at = jnp.where(slots.request >= 0, slot_of_query(slots, group_size), total)
    return jnp.full(total, S, jnp.int32).at[at].set(jnp.arange(S, dtype=jnp.int32), mode="drop")
