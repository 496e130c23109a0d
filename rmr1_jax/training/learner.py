"""What both training stages start from: a placed state, and the compiled update of it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from jax.typing import DTypeLike

from rmr1_jax.models.config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.training.placement import Placement, shapes_of, state_shardings
from rmr1_jax.training.step import Metrics, Objective, TrainState, initial_state, train_step


class Learner(NamedTuple):
    """A state before its first update; `like` is what a restored one must be like."""

    state: TrainState
    like: Any
    update: Callable[[TrainState, Any, Params], tuple[TrainState, Metrics]]
    """(state, batch, weights that are not trained) -> (state, metrics); it donates the state."""


def make_learner(
    model: ModelConfig,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    params: Params,
    placement: Placement,
    dtype: DTypeLike,
) -> Learner:
    """Moments and gradients lie with the parameters, which are placed already."""
    placed = jax.tree.map(lambda leaf: leaf.sharding, params)
    where = state_shardings(params, placed, optimizer, placement.replicated)
    state = jax.jit(partial(initial_state, optimizer=optimizer), out_shardings=where)(params)
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
        out_shardings=(where, placement.replicated),
    )
    return Learner(state, shapes_of(state, where), update)
