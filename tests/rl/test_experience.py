"""What a step of stage 2 makes of the metrics of its updates."""

import jax.numpy as jnp

from rmr1_jax.rl.experience import over_updates
from rmr1_jax.rl.loss import Sums
from rmr1_jax.training.step import Metrics


def update(bad_steps: int) -> Metrics:
    bad = jnp.int32(bad_steps)
    return Metrics(Sums.zero(), jnp.float32(1), bad == 0, bad, jnp.int32(0))


def test_a_good_update_does_not_hide_the_bad_ones_before_it() -> None:
    step = over_updates([update(bad_steps) for bad_steps in (1, 2, 3, 0, 1, 0)])
    assert not step.finite
    assert int(step.bad_steps) == 3
