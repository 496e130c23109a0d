"""The decode loop: sampling inside the graph, with slots that refill themselves.

`run_decode_loop` is one `while_loop`. Its body prefills waiting prompts into free prompt slots (in
chunks, so that a short prompt is cheap), gives free slots to waiting samples, and decodes until a
slot can be refilled. Decoding never leaves the program, never waits for the host, and never puts a
cache into a conditional; the caches are updated in place.

The first input of a slot is the last token of its prompt. Prefill therefore needs no output head,
and the first token is sampled like every other. In each step the queries are gathered by prompt
slot, so that a prompt is read once for all of its samples.
"""

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
    query_of_slot,
    routes,
)
from rmr1_jax.sampling.prefill import Decoder, Prefix, prefill
from rmr1_jax.sampling.sampler import Sampled, is_stop, request_uniform, sample


def unstack_layers(config: ModelConfig, params: Params, dtype: DTypeLike) -> Params:
    """Weights for decoding: in the compute dtype, with the stacked layers as a tuple.

    With a scan over layers, every step would slice the weights and copy the caches.
    """
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    layers = tuple(
        jax.tree.map(lambda x: x[i], params["layers"])  # noqa: B023
        for i in range(config.num_layers)
    )
    return {**params, "layers": layers}


def run_decode_loop(
    config: ModelConfig,
    weights: Params,
    state: EngineState,
    max_steps: Int[Array, ""] | int,
    drained_slots: Int[Array, ""] | int = 0,
    *,
    attention: DecodeAttention = masked,
) -> EngineState:
    """Admit, prefill and decode until nothing is left to do.

    The loop also stops when a live response has filled its KV ring buffer (`resize` it and
    continue), after `max_steps` decode steps, or when nothing waits and at most `drained_slots`
    slots are live (`compact` them and continue).

    Args:
      config: the model's.
      weights: from `unstack_layers`.
      state: from `init_state`, or from an earlier call.
      max_steps: a traced value.
      drained_slots: a traced value.
      attention: `masked`, or a faster equivalent for the platform.
    """
    model = Decoder(config, weights)
    limit = state.counters.steps[0] + max_steps

    def may_step(state: EngineState) -> Bool[Array, ""]:
        fits = jnp.max(_live_written(state)) < state.cache_length
        return fits & (state.counters.steps[0] < limit)

    def unfinished(state: EngineState) -> Bool[Array, ""]:
        live, waiting = jnp.sum(state.slots.request >= 0), _waiting(state)
        return may_step(state) & (waiting | (live > drained_slots))

    def decode(state: EngineState) -> EngineState:
        def steady(state: EngineState) -> Bool[Array, ""]:
            live = jnp.sum(state.slots.request >= 0)
            drained = ~_waiting(state) & (live <= drained_slots)
            return may_step(state) & (live > 0) & ~_can_admit(state) & ~drained

        with jax.named_scope("decode"):  # plans tell the two loops apart by this name
            return jax.lax.while_loop(steady, lambda s: _decode_step(model, attention, s), state)

    return jax.lax.while_loop(unfinished, lambda s: decode(_admit(model, s)), state)


def _waiting(state: EngineState) -> Bool[Array, ""]:
    """Whether some sample has no slot yet."""
    pending = jnp.any(state.prompt_slots.next_sample < state.group_size)
    return pending | jnp.any(state.requests.arrival != NOT_WAITING)


def _live_written(state: EngineState) -> Int[Array, "S"]:
    return jnp.where(state.slots.request >= 0, state.slots.written, 0)


def _prompt_slots_in_use(state: EngineState) -> Bool[Array, "prompt_slots"]:
    """Which prompt slots have a live slot that answers their prompt."""
    prompt_slots = state.prompt_slots.entry.shape[0]
    at = jnp.where(state.slots.request >= 0, state.slots.prompt_slot, prompt_slots)
    return jnp.zeros(prompt_slots, bool).at[at].set(True, mode="drop")


def _free_prompt_slots(state: EngineState) -> Bool[Array, "prompt_slots"]:
    """Which prompt slots can take a new prompt: all of their samples have finished."""
    return (state.prompt_slots.next_sample == state.group_size) & ~_prompt_slots_in_use(state)


def _wants_prompt(state: EngineState) -> Bool[Array, ""]:
    """Whether to prefill: prefilled prompts cannot fill all free slots, and there is room."""
    free_slots = jnp.sum(state.slots.request < 0)
    pending = jnp.sum(state.group_size - state.prompt_slots.next_sample)
    waiting = jnp.any(state.requests.arrival != NOT_WAITING)
    return (free_slots > pending) & waiting & jnp.any(_free_prompt_slots(state))


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
    prompt_slot = jnp.argmax(_free_prompt_slots(state)).astype(jnp.int32)
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
    """Give free slots to waiting samples, in the order of prompt slots and then of samples."""
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
    prompt_length = requests.length[state.prompt_slots.entry] - 1
    prefix = Prefix(state.prefix, requests.shared[state.prompt_slots.entry[slots.prompt_slot]])
    positions = prefix.shared + prompt_length[slots.prompt_slot] + slots.written
    attend_response = attention(
        Live(jnp.full_like(slots.written, write_position), jnp.where(live, slots.written + 1, 0)),
        state.cache_length,
    )
    attend_prompt = attention(
        Live(prompt_length - 1, jnp.where(_prompt_slots_in_use(state), prompt_length, 0)),
        requests.tokens.shape[1],
    )
    responses = list(state.responses)

    def attend(layer: int, query: Array, key: Array, value: Array) -> Array:
        responses[layer] = write(responses[layer], key, value, 0, write_position)
        own = attend_response(query, *responses[layer])
        prompt = _attend_prompts(state, query, state.prompts[layer], attend_prompt)
        return merge(own, prompt, *prefix.attend(layer, query)).astype(query.dtype)

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
        write_position=(state.write_position + 1) % state.cache_length,
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


def _attend_prompts(
    state: EngineState,
    query: Float[Array, "S 1 N H"],
    prompts: LayerCache,
    attend: Attend,
) -> PartialAttention:
    """Attention of every slot to its prompt. Each prompt is read once."""
    if state.group_size == 1:  # slot i has prompt slot i
        return attend(query, *prompts)
    prompt_slots = state.prompt_slots.entry.shape[0]
    by_prompt_slot = query[:, 0].at[state.slots.route].get(mode="fill", fill_value=0)
    by_prompt_slot = by_prompt_slot.reshape(prompt_slots, -1, *query.shape[2:])
    parts = attend(by_prompt_slot, *prompts)
    back = query_of_slot(state.slots, state.group_size)
    return PartialAttention(*(x.reshape(-1, *x.shape[2:])[back][:, None] for x in parts))


def _record(
    outputs: Outputs,
    slots: Slots,
    drawn: Sampled,
    logit_diffs: Float[Array, "S"],
    stopped: Bool[Array, "S"],
    ended: Bool[Array, "S"],
) -> Outputs:
    """Record the tokens of live slots. Idle slots point past the end, so they are dropped."""
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
