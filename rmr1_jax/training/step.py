"""One training step: gradients accumulated over micro-batches, clipped, applied by AdamW; one
program, whose state lies with the parameters.

Nothing here knows the objective: it is a function of a model and a micro-batch that returns its
share of the step's loss and sums to report (`nll.nll`, `loss.grpo`).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from rmr1_jax.config import OptimizerConfig
from rmr1_jax.models.lora import combine
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params, Transformer, with_params
from rmr1_jax.training.sharding_plan import ShardingPlan

Tree = Any


class TrainState(NamedTuple):
    """All that a step changes. With LoRA, `params` are the adapters only."""

    step: Int[Array, ""]
    params: Params
    optimizer: optax.OptState
    bad_steps: Int[Array, ""]
    """Updates in a row whose loss or gradient was not finite: they changed nothing else."""
    skipped: Int[Array, ""]
    """All such updates."""


class Metrics(NamedTuple):
    """What a step reports; `sums` are the objective's own."""

    sums: Any
    gradient_norm: Float[Array, ""]
    finite: Array
    bad_steps: Int[Array, ""]
    skipped: Int[Array, ""]


class Objective(Protocol):
    """(model, micro-batch, weight of the whole step) -> (share of the loss, sums to report).

    The sums have a `loss`, start at `zero()` and take those of a further micro-batch by `plus`.
    """

    def __call__(
        self, model: Transformer, micro: Any, weight_of_step: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Any]: ...


def initial_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    zero = lambda: jnp.zeros((), jnp.int32)  # noqa: E731  (three buffers, to be donated)
    return TrainState(zero(), params, optimizer.init(wide(params)), zero(), zero())


def train_step(
    state: TrainState,
    batch: Any,
    base: Params,
    *,
    config: ModelConfig,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    dtype: DTypeLike,
    place: Callable[[Tree], Tree] = lambda tree: tree,
) -> tuple[TrainState, Metrics]:
    """The next state, and what to report.

    Args:
      state: donate it.
      batch: leaves [S, R, ...], with `loss_weights`; the S micro-batches follow one another.
      base: weights that are not trained (LoRA); empty otherwise.
      config, dtype: of the model; weights are cast once a step, not once a micro-batch.
      place: puts a tree shaped like the parameters where the parameters are, so that each
        micro-batch's gradients are reduced and scattered, never held whole.
    """
    weight_of_step = batch.loss_weights.sum()
    trained = cast(state.params, dtype)
    frozen = cast(base, dtype)

    def loss(params: Params, micro: Any) -> tuple[Array, Any]:
        model = with_params(config, combine(params, frozen), dtype=dtype)
        return objective(model, micro, weight_of_step)

    def accumulate(micro: Any, so_far: tuple[Tree, Any]) -> tuple[Tree, Any]:
        grads, sums = so_far
        (_, more), new = jax.value_and_grad(loss, has_aux=True)(trained, micro)
        grads = jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, place(new))
        return place(grads), sums.plus(more)

    zeros = place(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), state.params))
    no_sums = _zero_sums(lambda micro: loss(trained, micro)[1], batch)
    grads, sums = _for_micro_batches(accumulate, (zeros, no_sums), batch)

    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(sums.loss)
    params, moments = apply_gradients(optimizer, grads, state.optimizer, state.params)
    keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
    new = TrainState(
        step=state.step + 1,
        params=jax.tree.map(keep, params, state.params),
        optimizer=jax.tree.map(keep, moments, state.optimizer),
        bad_steps=jnp.where(finite, 0, state.bad_steps + 1),
        skipped=state.skipped + (1 - finite.astype(jnp.int32)),
    )
    return new, Metrics(sums, norm, finite, new.bad_steps, new.skipped)


def evaluation_step(
    params: Params,
    batch: Any,
    base: Params,
    *,
    config: ModelConfig,
    objective: Objective,
    dtype: DTypeLike,
) -> Any:
    """The objective's sums over a batch; no gradients."""
    model = with_params(config, cast(combine(params, base), dtype), dtype=dtype)
    weight = jnp.maximum(batch.loss_weights.sum(), 1.0)
    sums = lambda micro: objective(model, micro, weight)[1]  # noqa: E731
    zero = _zero_sums(sums, batch)
    return _for_micro_batches(lambda micro, so_far: so_far.plus(sums(micro)), zero, batch)


def batch_logprobs(
    params: Params,
    batch: Any,
    base: Params,
    *,
    config: ModelConfig,
    token_logprobs: Callable[[Transformer, Any], Float[Array, "R W"]],
    dtype: DTypeLike,
) -> Float[Array, "S R W"]:
    """`token_logprobs` of each micro-batch; 0 where it holds nothing. No gradients."""
    model = with_params(config, cast(combine(params, base), dtype), dtype=dtype)

    def one(micro: Any, so_far: tuple[Array, Array]) -> tuple[Array, Array]:
        found, i = so_far
        return found.at[i].set(token_logprobs(model, micro)), i + 1

    start = jnp.zeros(batch.loss_weights.shape, jnp.float32), jnp.int32(0)
    return _for_micro_batches(one, start, batch)[0]


def _for_micro_batches[C](function: Callable[[Any, C], C], start: C, batch: Any) -> C:
    """`function` of each micro-batch and the result so far, until the last that holds something.

    The number of micro-batches is a capacity, which a few shapes serve for all that is packed. A
    weight that is not a number counts as something, so that a step finds it.
    """
    holds = (batch.loss_weights != 0).any((1, 2))
    live = jnp.max(jnp.where(holds, jnp.arange(1, len(holds) + 1), 0))
    return jax.lax.fori_loop(0, live, lambda i, state: function(_micro(batch, i), state), start)


def _micro(batch: Any, i: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), batch)


def _zero_sums(sums: Callable[[Any], Any], batch: Any) -> Any:
    """What the sums of an objective start from; nothing is computed."""
    return jax.eval_shape(lambda: sums(_micro(batch, 0))).zero()


def cast(tree: Mapping[str, Any], dtype: DTypeLike) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), dict(tree))


class Learner(NamedTuple):
    """The compiled programs of a run's updates."""

    start: Any
    """Compiled: params -> state."""
    like: TrainState
    """Shapes, types and shardings of the state, as a checkpoint is restored to."""
    update: Any
    """Compiled: (state, batch, weights that are not trained) -> (state, metrics). The state is
    donated."""


def make_learner(
    model: ModelConfig,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    params: Params,
    sharding: ShardingPlan,
    dtype: DTypeLike,
) -> Learner:
    """Moments and gradients lie with `params`: arrays, or shapes with shardings."""
    placed = jax.tree.map(lambda leaf: leaf.sharding, params)
    where = state_shardings(params, placed, optimizer, sharding.replicated)
    start = jax.jit(partial(initial_state, optimizer=optimizer), out_shardings=where)
    update = jax.jit(
        partial(
            train_step,
            config=model,
            objective=objective,
            optimizer=optimizer,
            dtype=dtype,
            place=lambda tree: jax.lax.with_sharding_constraint(tree, placed),
        ),
        donate_argnums=0,
        out_shardings=(where, sharding.replicated),
        compiler_options=sharding.compiler_options,
    )
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(start, params),
        where,
    )
    return Learner(start, like, update)


def state_shardings(
    params: Any, param_shardings: Any, optimizer: optax.GradientTransformation, rest: Any
) -> TrainState:
    """A `TrainState` of shardings: moments lie with their parameters, `rest` is for counters."""
    moments = jax.eval_shape(lambda p: optimizer.init(wide(p)), params)
    placed = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        moments,
        param_shardings,
        transform_non_params=lambda _: rest,
    )
    return TrainState(rest, param_shardings, placed, rest, rest)


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear from 0 over the warm-up, then a half cosine to a share of the peak at `steps`.

    Source: spec §3 (OpenRLHF's `cosine_with_min_lr`).
    """
    warmup = config.warmup if config.warmup >= 1 else math.ceil(config.warmup * steps)
    # Optax wants at least one step of decay after the warm-up.
    warmup = min(int(warmup), steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.final_lr_ratio * config.learning_rate,
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW, as published (spec §3: betas 0.9 and 0.95, norm 1.0).

    Its state is always float32: initialise it with `wide(params)`.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        ),
    )


def wide(tree: Tree) -> Tree:
    """The tree in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def apply_gradients(
    optimizer: optax.GradientTransformation, grads: Tree, state: Tree, params: Tree
) -> tuple[Tree, Tree]:
    """(new parameters in their own dtype, new optimizer state); computed in float32."""
    updates, state = optimizer.update(wide(grads), state, wide(params))
    new = jax.tree.map(lambda p, u: (p.astype(jnp.float32) + u).astype(p.dtype), params, updates)
    return new, state
