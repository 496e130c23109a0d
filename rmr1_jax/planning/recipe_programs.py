"""The programs of a recipe, ready to be compiled for devices that are not here.

They are the very functions that a run compiles, lowered from shapes instead of arrays. Sizes that a
run takes from its data (how many micro-batches, how long responses are) are assumed, and said.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from rmr1_jax.config import GrpoConfig, SftConfig
from rmr1_jax.data.packed_batch import Batch, GroupBatch
from rmr1_jax.models.kv_cache import KVCache
from rmr1_jax.models.lora import Lora, combine, random_adapters, split_trainable
from rmr1_jax.models.lora import logical_axes as lora_axes
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params, logical_axes, parameter_shapes
from rmr1_jax.models.weight_map import layers_at_once, put_layers
from rmr1_jax.ops.cross_entropy import even_chunk
from rmr1_jax.ops.decode_attention import block_width
from rmr1_jax.ops.packed_attention import CPU_BLOCK, accelerator_block
from rmr1_jax.planning.compiled import Decode, Planned
from rmr1_jax.planning.hlo_walk import Loop
from rmr1_jax.rl.batch import longest_row
from rmr1_jax.rl.loss import grpo_objective, logprob_pass
from rmr1_jax.rl.rollout import ACCELERATOR_SLOTS
from rmr1_jax.sampling.decode_programs import Programs, cache_bucket, prompt_width
from rmr1_jax.sampling.prefill import PREFILL_CHUNK
from rmr1_jax.sampling.request_queue import queue_entries
from rmr1_jax.training.flops import group_flops, training_flops
from rmr1_jax.training.nll import sft_objective
from rmr1_jax.training.sharding_plan import (
    ShardingPlan,
    decoding_mesh,
    decoding_shardings,
    make_reshard,
)
from rmr1_jax.training.step import Learner, make_learner, make_optimizer

Tree = Any
BLOCK = 512  # positions a block of the attention kernels, of which none is computed in part


@dataclass(frozen=True)
class Lengths:
    """Mean lengths in tokens that a plan assumes of data that it does not see."""

    prompt: int
    response: int


def programs_of(
    config: SftConfig | GrpoConfig,
    model: ModelConfig,
    sharding: ShardingPlan,
    lengths: Lengths,
    *,
    lora: Lora | None,
    dtype: str,
) -> tuple[Planned, ...]:
    """The programs of a recipe, in the order in which a step runs them."""
    params, base = weights_of(config, model, sharding, lora, dtype)
    of_stage: Any = _sft if isinstance(config, SftConfig) else _grpo
    step: tuple[Planned, ...] = of_stage(config, model, sharding, lengths, params, base, dtype)
    return (_import(base or params, sharding), *step)


def weights_of(
    config: SftConfig | GrpoConfig,
    model: ModelConfig,
    sharding: ShardingPlan,
    lora: Lora | None,
    dtype: str,
) -> tuple[Params, Params]:
    """What is trained and what is not, as shapes with shardings (`training.training_run` makes the
    arrays)."""
    kept = config.optimizer.param_dtype
    whole = _placed(
        parameter_shapes(model, jnp.dtype(dtype if lora else kept)),
        sharding.of(logical_axes(model)),
    )
    if lora is None:
        return whole, {}
    adapters = jax.eval_shape(partial(random_adapters, model, lora, 0, jnp.dtype(kept)))
    adapters, scales = split_trainable(adapters)
    placed, _ = split_trainable(sharding.of(lora_axes(model, lora)))
    frozen = combine(whole, jax.tree.map(lambda s: _struct(s, sharding.replicated), scales))
    return _placed(adapters, placed), frozen


def bytes_on_chip(tree: Tree) -> int:
    """What a chip holds of shapes with shardings."""
    return sum(_elements_on_chip(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _elements_on_chip(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape))


def _sft(
    config: SftConfig,
    model: ModelConfig,
    sharding: ShardingPlan,
    lengths: Lengths,
    params: Params,
    base: Params,
    dtype: str,
) -> tuple[Planned, ...]:
    T = config.data.pack_length or config.data.max_length
    R = sharding.row_groups * config.micro_batch_size
    sequence = min(lengths.prompt + lengths.response, T)
    rows = -(-config.batch_size // max(T // sequence, 1))
    S = -(-rows // R)
    learner = make_learner(
        model, sft_objective(config, sharding), _optimizer(config), params, sharding, dtype
    )
    batch = _batch(Batch, (S, R, T), sharding)
    per_step = np.full(config.batch_size, sequence)
    learnt = config.batch_size * min(lengths.response, sequence)
    chunks = loss_chunks(model, T, config.micro_batch_size, learnt / (S * R * T))
    return (
        _start(learner, params),
        Planned(
            "update",
            lambda: learner.update.lower(learner.like, batch, base),
            runs=1,
            useful_flops=training_flops(model, per_step, learnt, adapters_only=bool(base)),
            tokens=float(per_step.sum()),
            trips=training_loops(S, chunks, blocks_met(T, T * (sequence + BLOCK))),
            attention=min((sequence + BLOCK) / T, 1.0),
        ),
    )


def _grpo(
    config: GrpoConfig,
    model: ModelConfig,
    sharding: ShardingPlan,
    lengths: Lengths,
    params: Params,
    base: Params,
    dtype: str,
) -> tuple[Planned, ...]:
    T = -(-longest_row(config) // 128) * 128
    R, G = sharding.row_groups * config.micro_batch_size, config.rollout.samples
    group = lengths.prompt + G * lengths.response
    tokens = config.mini_batch * group
    S = -(-math.ceil(tokens / T) // R)
    learner = make_learner(
        model, grpo_objective(config, sharding), _optimizer(config), params, sharding, dtype
    )
    logprobs = logprob_pass(config, model, sharding, dtype)
    batch = _batch(GroupBatch, (S, R, T), sharding)
    prompts = np.full(config.mini_batch, lengths.prompt)
    responses = np.full((config.mini_batch, G), lengths.response)
    once = group_flops(model, prompts, responses)
    state = bytes_on_chip(learner.like)
    reference: Params = {}
    if config.objective.kl and not base:  # under adapters lies the reference
        reference = _placed(
            parameter_shapes(model, jnp.dtype(config.reference.dtype or dtype)),
            sharding.of(logical_axes(model)),
        )
    beside = bytes_on_chip(reference)
    whole = combine(params, base)
    p, r = lengths.prompt, lengths.response
    pairs = p * (p + BLOCK) + G * r * (r + BLOCK + 2 * p)  # twice those of a group
    learnt = config.mini_batch * G * r
    passes: dict[str, Any] = {
        "tokens": float(tokens),
        "useful_flops": once,
        "trips": training_loops(
            S,
            loss_chunks(model, T, config.micro_batch_size, learnt / (S * R * T)),
            blocks_met(T, config.mini_batch * pairs / (S * R)),
        ),
        "attention": min(config.mini_batch * pairs / (S * R * T * T), 1.0),
    }
    planned = [
        _start(learner, params),
        Planned(
            "reshard",
            lambda: make_reshard(model, sharding, dtype).lower(whole),
            runs=1,
            resident=state - bytes_on_chip(params) + beside,
        ),
        *_rollout(config, model, sharding, lengths, state + beside, whole, dtype),
    ]
    if config.updates > 1:
        planned.append(
            Planned(
                "log-probabilities",
                lambda: logprobs.lower(params, batch, base),
                runs=config.updates,
                resident=state - bytes_on_chip(params) + beside,
                **passes,
            )
        )
    if reference:
        planned.append(
            Planned(
                "reference log-probabilities",
                lambda: logprobs.lower(reference, batch, {}),
                runs=config.updates,
                resident=state,
                **passes,
            )
        )
    planned.append(
        Planned(
            "update",
            lambda: learner.update.lower(learner.like, batch, base),
            runs=config.updates,
            resident=beside,
            **{**passes, "useful_flops": (2 if base else 3) * once},
        )
    )
    return tuple(planned)


def _rollout(
    config: GrpoConfig,
    model: ModelConfig,
    sharding: ShardingPlan,
    lengths: Lengths,
    resident: int,
    whole: Params,
    dtype: str,
) -> list[Planned]:
    """Prefill and decoding, and the growth of the ring to its last size, with all slots taken."""
    G, longest = config.rollout.samples, config.rollout.max_response
    weights = jax.eval_shape(make_reshard(model, sharding, dtype), whole)
    weights = _placed(weights, decoding_shardings(model, sharding))
    programs = Programs(model, weights, G, decoding_mesh(sharding))
    slots = -(-(config.rollout.max_num_seqs or ACCELERATOR_SLOTS) // programs.groups)
    prompts = -(-config.batch_size // programs.groups)
    sizes: dict[str, Any] = {
        "entries": queue_entries(slots, G),
        "prompts": prompts,
        "width": prompt_width(config.data.max_prompt),
        "max_new_tokens": longest,
        "slots": slots,
    }
    state = programs.shapes(cache_length=cache_bucket(longest), **sizes)
    before = programs.shapes(cache_length=max(cache_bucket(longest) // 2, cache_bucket(1)), **sizes)
    cache = [leaf for kind in (state.prompts, state.responses) for layer in kind for leaf in layer]
    # Weights once; the responses as long as they are in the mean while they are written, half of
    # what they become; each prompt once for its group.
    heads = model.num_layers * model.num_kv_heads * model.head_dim
    per_token = 2 * heads * jnp.dtype(dtype).itemsize
    asked = -(-slots // G)
    live = slots * lengths.response / 2 + asked * lengths.prompt
    split = sharding.mesh.shape["tensor"]
    ideal = bytes_on_chip({**weights, "embed": {}}) + live * per_token / split
    if model.tie_embeddings:
        ideal += bytes_on_chip(weights["embed"])
    steps = config.batch_size * G * lengths.response / (slots * programs.groups)
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    beside = resident
    written = float(config.batch_size * G * lengths.response)
    return [
        Planned(
            "rollout",
            lambda: programs.run.lower(weights, state, scalar, scalar),
            runs=1,
            tokens=written,
            useful_flops=group_flops(
                model,
                np.full(config.batch_size, lengths.prompt),
                np.full((config.batch_size, G), lengths.response),
            ),
            resident=beside,
            trips=partial(engine_loops, steps, prompts, -(-lengths.prompt // PREFILL_CHUNK)),
            decode=Decode(
                steps,
                ideal,
                min(map(bytes_on_chip, cache)),
                {
                    **_live_share(state.prompts, asked, lengths.prompt, from_column_0=True),
                    **_live_share(state.responses, slots, lengths.response / 2),
                },
            ),
        ),
        Planned(
            "ring growth",
            lambda: programs.resizing(
                cache_bucket(longest), state.requests.tokens.shape[1], True
            ).lower(replace(before, responses=()), before.responses),
            runs=1,
            resident=beside + bytes_on_chip(weights),
        ),
    ]


def _live_share(
    cache: KVCache, rows: int, length: float, *, from_column_0: bool = False
) -> dict[int, float]:
    """What of an array lies in the blocks of so many rows of this mean length, by its elements."""
    of_rows, _, columns, _ = cache[0].value.sharding.shard_shape(cache[0].value.shape)
    # In the mean half of a row's last block is in excess, and where it begins anywhere in a block,
    # half of its first one.
    excess = (block_width(columns) - 1) / (2 if from_column_0 else 1)
    read = rows * min(length + excess, columns)
    return {_elements_on_chip(cache[0].value): min(read / (of_rows * columns), 1.0)}


def _import(weights: Params, sharding: ShardingPlan) -> Planned:
    """Reading a checkpoint onto the devices (`models.weight_map`), when they hold the most: all
    weights, and some layers of the largest once more."""
    largest = max(jax.tree.leaves(weights["layers"]), key=bytes_on_chip)
    layers, *shape = largest.sharding.shard_shape(largest.shape)
    some = min(layers, layers_at_once(shape, largest.dtype))
    # Each device reads its own part, as if it were alone.
    leaf, group = (
        jax.ShapeDtypeStruct((n, *shape), largest.dtype, sharding=sharding.replicated)
        for n in (layers, some)
    )
    return Planned(
        "import",
        lambda: put_layers.lower(leaf, group, 0),
        runs=0,
        resident=bytes_on_chip(weights) - bytes_on_chip(leaf),
    )


def _start(learner: Learner, params: Params) -> Planned:
    return Planned("optimizer start", lambda: learner.start.lower(params), runs=0)


def _optimizer(config: SftConfig | GrpoConfig) -> Any:
    # The number of steps is a constant of the program, which changes nothing of its cost.
    return make_optimizer(config.optimizer, 1000)


def _batch(kind: type, shape: Sequence[int], sharding: ShardingPlan) -> Any:
    """A batch whose every position may teach: the most that its programs ever compute."""
    reals = ("loss_weights", "advantages", "sampler_logprobs", "old_logprobs", "reference_logprobs")

    def leaf(name: str) -> jax.ShapeDtypeStruct:
        dtype = jnp.float32 if name in reals else jnp.bool_ if name == "verdicts" else jnp.int32
        return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding.batch)

    return kind(*map(leaf, kind._fields))  # type: ignore[attr-defined]


def _placed(shapes: Tree, shardings: Tree) -> Tree:
    if isinstance(shardings, Sharding):
        return jax.tree.map(lambda shape: _struct(shape, shardings), shapes)
    return jax.tree.map(_struct, shapes, shardings)


def _struct(shape: Any, sharding: Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def training_loops(
    micro_batches: float, chunks: float, blocks: float
) -> Callable[[Loop], float | None]:
    """Outside, the micro-batches; within each, the chunks of positions that learn something; in its
    layers, where no kernel does it, the pairs of blocks that attention meets."""
    return lambda loop: (micro_batches, chunks, blocks)[min(loop.depth, 2)]


def loss_chunks(model: ModelConfig, positions: int, rows: int, share: float) -> float:
    """Chunks of the loss that hold something, where a share of the positions learns."""
    chunk = even_chunk(positions, model.vocab_size, rows)
    return max(math.ceil(min(share, 1.0) * positions / chunk), 1)


def blocks_met(positions: int, pairs: float) -> float:
    """Pairs of blocks that `packed_attention` meets in a row, of twice so many pairs of positions
    that see each other, whole blocks counted."""
    padded = -(-positions // CPU_BLOCK) * CPU_BLOCK
    block = accelerator_block(padded)
    blocks = padded // block
    return min(max(pairs / 2 / block**2, blocks), blocks * (blocks + 1) / 2)


def engine_loops(steps: float, prompts: float, chunks: float, loop: Loop) -> float | None:
    """Of one run that serves all: each prompt is prefilled in chunks, and then decoded."""
    if loop.depth == 0:
        return 1.0
    if "/prefill/" in loop.op_name:
        return prompts if loop.depth == 1 else chunks
    return steps if loop.op_name.endswith("decode/while") else None
