"""AdamW as published: warm-up, cosine decay, clipping; moments are always float32.

Source: spec §3 (OpenRLHF's `cosine_with_min_lr`, betas 0.9 and 0.95, max_norm 1.0).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rmr1_jax.config import OptimizerConfig

Tree = Any


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear from 0 over the warm-up, then a half cosine to `final` of the highest at `steps`."""
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
    """Clip by global norm, then AdamW. Its state is float32: initialise it with `wide(params)`."""
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
