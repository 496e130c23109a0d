"""Sampling inside the graph: slots that refill themselves, prompts that are computed once.

`run` is one `while_loop`. Its body admits waiting prompts into free prompt slots (prefill, in
chunks, so a short prompt costs what it is long), gives free slots to waiting samples, and decodes
until a slot can be refilled. No program boundary, no host and no conditional on a cache stands
inside the decode loop, and the caches are updated in place.

A slot's first input is the last token of its prompt, so prefill needs no output head and the first
token is sampled like every other. Each step, the queries go to the prompts rather than the prompts
to the queries: they are gathered by prompt slot, so a shared prompt is read once however many
samples ask.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from rmr1_jax.models.kv_cache import LayerCache, write
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.ops.attention import PartialAttention, merge
from rmr1_jax.ops.decode_attention import Attend, DecodeAttention, Live, masked
from rmr1_jax.sampling.decode_state import (
    IDLE,
    NOT_WAITING,
    EngineState,
    Outputs,
    Slots,
    resize,
    routes,
    slot_of_query,
)
from rmr1_jax.sampling.prefill import Decoder, Prefix, prefill
from rmr1_jax.sampling.sampler import Sampled, is_stop, request_uniform, sample


def unstack_layers(config: ModelConfig, params: Params, dtype: DTypeLike) -> Params:
    """Weights as decoding wants them: in the compute dtype, and a tuple of layers, not a stack.

    A scanned stack would be sliced, and a scanned cache copied, at every step.
    """
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    layers = tuple(
        jax.tree.map(lambda x: x[i], params["layers"])  # noqa: B023
        for i in range(config.num_layers)
    )
    return {**params, "layers": layers}


def run(
    config: ModelConfig,
    weights: Params,
    state: EngineState,
    max_steps: Int[Array, ""] | int,
    drained_slots: Int[Array, ""] | int = 0,
    *,
    attention: DecodeAttention = masked,
) -> EngineState:
    """Admit, prefill and decode until nothing is left to do.

    It also stops when a live response has filled the ring (`resize` it and go on), after
    `max_steps` decode steps, or when nothing waits and no more than `drained_slots` slots are live
    (`compact`).

    Args:
      config: the model's.
      weights: from `unstack_layers`.
      state: from `init_state`, or an earlier `run`.
      max_steps: traced.
      drained_slots: traced.
      attention: `masked`, or what gives the same faster where the arrays are.
    """
    model = Decoder(config, weights)
    limit = state.counters.steps[0] + max_steps

    def may_step(state: EngineState) -> Bool[Array, ""]:
        fits = jnp.max(_live_written(state)) < state.columns
        return fits & (state.counters.steps[0] < limit)

    def unfinished(state: EngineState) -> Bool[Array, ""]:
        live, waiting = jnp.sum(state.slots.request >= 0), _waiting(state)
        return may_step(state) & (waiting | (live > drained_slots))

    def decode(state: EngineState) -> EngineState:
        def steady(state: EngineState) -> Bool[Array, ""]:
            live = jnp.sum(state.slots.request >= 0)
            drained = ~_waiting(state) & (live <= drained_slots)
            return may_step(state) & (live > 0) & ~_can_admit(state) & ~drained

        with jax.named_scope("decode"):  # by which plans tell the two loops apart
            return jax.lax.while_loop(steady, lambda s: _decode_step(model, attention, s), state)

    return jax.lax.while_loop(unfinished, lambda s: decode(_admit(model, s)), state)


def generate(
    config: ModelConfig, weights: Params, state: EngineState, ring_sizes: Sequence[int]
) -> EngineState:
    """The whole queue in one program: `run` in each ring of an ascending list, growing in between.

    While all responses are short, steps read the short ring. The last size must hold the longest
    response. `state` comes from `init_state` with the first size.
    """
    for columns in ring_sizes:
        if columns != state.columns:
            state = resize(state, columns=columns)
        state = run(config, weights, state, max_steps=jnp.iinfo(jnp.int32).max // 2)
    return state


def _waiting(state: EngineState) -> Bool[Array, ""]:
    """Some sample has no slot yet."""
    pending = jnp.any(state.prompt_slots.next_sample < state.group_size)
    return pending | jnp.any(state.requests.arrival != NOT_WAITING)


def _live_written(state: EngineState) -> Int[Array, "S"]:
    return jnp.where(state.slots.request >= 0, state.slots.written, 0)


def _asked_lanes(state: EngineState) -> Bool[Array, "prompt_slots"]:
    """PromptSlots whose prompt some live slot answers."""
    prompt_slots = state.prompt_slots.entry.shape[0]
    at = jnp.where(state.slots.request >= 0, state.slots.prompt_slot, prompt_slots)
    return jnp.zeros(prompt_slots, bool).at[at].set(True, mode="drop")


def _free_lanes(state: EngineState) -> Bool[Array, "prompt_slots"]:
    """PromptSlots whose samples all have finished."""
    return (state.prompt_slots.next_sample == state.group_size) & ~_asked_lanes(state)


def _wants_prompt(state: EngineState) -> Bool[Array, ""]:
    """A slot is free that no prefilled prompt can fill; so are a prompt and a prompt slot."""
    free_slots = jnp.sum(state.slots.request < 0)
    pending = jnp.sum(state.group_size - state.prompt_slots.next_sample)
    waiting = jnp.any(state.requests.arrival != NOT_WAITING)
    return (free_slots > pending) & waiting & jnp.any(_free_lanes(state))


def _can_admit(state: EngineState) -> Bool[Array, ""]:
    free_slot = jnp.any(state.slots.request < 0)
    pending = jnp.any(state.prompt_slots.next_sample < state.group_size)
    return (free_slot & pending) | _wants_prompt(state)


def _admit(model: Decoder, state: EngineState) -> EngineState:
    with jax.named_scope("prefill"):
        state = jax.lax.while_loop(_wants_prompt, lambda s: _prefill_next(model, s), state)
    return _fill_slots(state)


def _prefill_next(model: Decoder, state: EngineState) -> EngineState:
    """Compute the KV of the next prompt, all but its last token, into a free prompt slot."""
    requests, counters = state.requests, state.counters
    entry = jnp.argmin(requests.arrival).astype(jnp.int32)
    prompt_slot = jnp.argmax(_free_lanes(state)).astype(jnp.int32)
    prompts, computed = prefill(
        model,
        requests.tokens[entry],
        requests.length[entry] - 1,
        state.prompts,
        prompt_slot,
        Prefix(state.prefix, requests.shared[entry][None]),
    )
    return replace(
        state,
        prompts=prompts,
        requests=replace(requests, arrival=requests.arrival.at[entry].set(NOT_WAITING)),
        prompt_slots=replace(
            state.prompt_slots,
            entry=state.prompt_slots.entry.at[prompt_slot].set(entry),
            next_sample=state.prompt_slots.next_sample.at[prompt_slot].set(0),
        ),
        counters=replace(counters, prefill_tokens=counters.prefill_tokens + computed),
    )


def _fill_slots(state: EngineState) -> EngineState:
    """Give free slots to waiting samples, prompt slot by prompt slot, sample by sample."""
    slots, prompt_slots, G = state.slots, state.prompt_slots, state.group_size
    free = slots.request < 0
    rank = jnp.cumsum(free) - 1  # among the free
    pending = G - prompt_slots.next_sample
    until = jnp.cumsum(pending)
    taken = free & (rank < until[-1])
    prompt_slot = jnp.searchsorted(until, rank, side="right").astype(jnp.int32)
    prompt_slot = jnp.where(taken, prompt_slot, slots.prompt_slot)
    sample_index = prompt_slots.next_sample[prompt_slot] + rank - (until - pending)[prompt_slot]
    entry = prompt_slots.entry[prompt_slot]
    last = state.requests.tokens[entry, state.requests.length[entry] - 1]
    filled = Slots(
        request=jnp.where(taken, entry * G + sample_index, slots.request),
        prompt_slot=prompt_slot,
        token=jnp.where(taken, last, slots.token),
        written=jnp.where(taken, 0, slots.written),
        route=slots.route,
    )
    given = jnp.clip(jnp.sum(taken) - (until - pending), 0, pending)
    return replace(
        state,
        slots=replace(filled, route=routes(filled, prompt_slots.entry.shape[0], G)),
        prompt_slots=replace(prompt_slots, next_sample=prompt_slots.next_sample + given),
    )


def _decode_step(model: Decoder, attention: DecodeAttention, state: EngineState) -> EngineState:
    """One token for every slot."""
    slots, requests, write_position = state.slots, state.requests, state.write_position[0]
    live = slots.request >= 0
    lane_length = requests.length[state.prompt_slots.entry] - 1
    prefix = Prefix(state.prefix, requests.shared[state.prompt_slots.entry[slots.prompt_slot]])
    positions = prefix.shared + lane_length[slots.prompt_slot] + slots.written
    ask_response = attention(
        Live(jnp.full_like(slots.written, write_position), jnp.where(live, slots.written + 1, 0)),
        state.columns,
    )
    ask_prompt = attention(
        Live(lane_length - 1, jnp.where(_asked_lanes(state), lane_length, 0)),
        requests.tokens.shape[1],
    )
    responses = list(state.responses)

    def attend(layer: int, query: Array, key: Array, value: Array) -> Array:
        responses[layer] = write(responses[layer], key, value, 0, write_position)
        own = ask_response(query, *responses[layer])
        prompt = _ask_prompts(state, query, state.prompts[layer], ask_prompt)
        return merge(own, prompt, *prefix.ask(layer, query)).astype(query.dtype)

    hidden = model.blocks_over(slots.token[:, None], positions[:, None], attend)
    logits = model.logits(model.final_norm(hidden))[:, 0]

    entry = jnp.where(live, slots.request // state.group_size, 0)
    uniform = request_uniform(
        requests.seed[entry],
        requests.index[entry],
        slots.request % state.group_size,
        slots.written,
    )
    sampling = jax.tree.map(lambda values: values[entry], requests.sampling)
    # Idle slots never wake the sampler.
    sampling = sampling._replace(temperature=jnp.where(live, sampling.temperature, 0.0))
    drawn = sample(logits, uniform, sampling)
    compared = jnp.take_along_axis(logits, requests.compare_ids[entry], axis=-1)
    logit_diffs = compared[:, 0] - compared[:, 1]

    written = slots.written + 1
    stopped = is_stop(drawn.token, requests.stop_ids[entry])
    ended = live & (stopped | (written >= requests.max_new_tokens[entry]))
    counters = state.counters
    return replace(
        state,
        responses=tuple(responses),
        write_position=(state.write_position + 1) % state.columns,
        slots=replace(
            slots,
            request=jnp.where(ended, IDLE, slots.request),
            token=drawn.token,
            written=jnp.where(ended | ~live, 0, written),
        ),
        outputs=_record(state.outputs, slots, drawn, logit_diffs, stopped, ended),
        counters=replace(
            counters,
            steps=counters.steps + 1,
            row_steps=counters.row_steps + live.shape[0],
            live_row_steps=counters.live_row_steps + jnp.sum(live),
        ),
    )


def _ask_prompts(
    state: EngineState,
    query: Float[Array, "S 1 N H"],
    prompts: LayerCache,
    attend: Attend,
) -> PartialAttention:
    """Attention of every slot to the prompt of its prompt slot; each prompt is read once."""
    if state.group_size == 1:  # slot i asks prompt slot i
        return attend(query, *prompts)
    prompt_slots = state.prompt_slots.entry.shape[0]
    by_lane = query[:, 0].at[state.slots.route].get(mode="fill", fill_value=0)
    by_lane = by_lane.reshape(prompt_slots, -1, *query.shape[2:])
    parts = attend(by_lane, *prompts)
    back = slot_of_query(state.slots, state.group_size)
    return PartialAttention(*(x.reshape(-1, *x.shape[2:])[back][:, None] for x in parts))


def _record(
    outputs: Outputs,
    slots: Slots,
    drawn: Sampled,
    logit_diffs: Float[Array, "S"],
    stopped: Bool[Array, "S"],
    ended: Bool[Array, "S"],
) -> Outputs:
    """Write what the live slots have drawn; idle slots point beyond the end and are dropped."""
    request = jnp.where(slots.request >= 0, slots.request, outputs.length.shape[0])
    at = (request, slots.written)
    finish = jnp.where(ended, jnp.where(stopped, Outputs.STOPPED, Outputs.CUT), Outputs.RUNNING)
    return Outputs(
        tokens=outputs.tokens.at[at].set(drawn.token, mode="drop"),
        logprobs=outputs.logprobs.at[at].set(jnp.stack(drawn[1:], axis=-1), mode="drop"),
        logit_diffs=outputs.logit_diffs.at[at].set(logit_diffs, mode="drop"),
        length=outputs.length.at[request].set(slots.written + 1, mode="drop"),
        finished=outputs.finished.at[request].set(finish, mode="drop"),
    )
