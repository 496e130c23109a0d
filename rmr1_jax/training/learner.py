"""What both training stages start from: the compiled update of a placed state."""

from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from jax.typing import DTypeLike

from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.training.sharding_plan import ShardingPlan, shapes_of, state_shardings
from rmr1_jax.training.step import Objective, TrainState, initial_state, train_step


class Learner(NamedTuple):
    """The programs of a run's updates; `like` is what its state must be like, first or restored."""

    start: Any
    """Compiled: params -> state."""
    like: TrainState
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
    return Learner(start, shapes_of(jax.eval_shape(start, params), where), update)
