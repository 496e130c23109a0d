"""The objective of stage 1: the negative log-likelihood of the trace, given its prompt.

  L = - 1/n  sum_i  w_i  sum_t  log p(y_it | x_i, y_i<t)        w_i = 1/|y_i|  or  1

where every trace weighs the same (as published: spec §3) or every token does. The weights w come
with the batch, and n, the number of traces or of tokens in a step, is their sum.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rmr1_jax.config import SftConfig
from rmr1_jax.data.packed_batch import Batch, GroupBatch
from rmr1_jax.models.transformer import Remat, Transformer
from rmr1_jax.ops.constrain import Constrain, unconstrained
from rmr1_jax.ops.cross_entropy import target_logprobs
from rmr1_jax.ops.packed_attention import PackedAttention, packed_attention
from rmr1_jax.training.sharding_plan import ShardingPlan
from rmr1_jax.training.step import Objective


class Sums(NamedTuple):
    """What adds up over the micro-batches of a step."""

    loss: Float[Array, ""]
    nll: Float[Array, ""]
    tokens: Float[Array, ""]
    verdicts: Float[Array, ""]
    verdicts_right: Float[Array, ""]

    @classmethod
    def zero(cls) -> "Sums":
        return cls(*(jnp.zeros(()) for _ in cls._fields))

    def plus(self, other: "Sums") -> "Sums":
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


def predict_targets(
    model: Transformer,
    micro: Batch | GroupBatch,
    *,
    remat: Remat = "none",
    constrain: Constrain = unconstrained,
    attention: PackedAttention = packed_attention,
    batch_shards: int = 1,
    entropy: bool = False,
) -> tuple[Array, ...]:
    """`target_logprobs` of a micro-batch: [R, W] where something is learnt, 0 elsewhere.

    Hidden states are gathered where something is learnt, so that neither the output head nor the
    softmax is computed over prompts and padding. `batch_shards` devices split the rows.
    """
    hidden = model(
        micro.tokens,
        micro.positions,
        micro.segment_ids,
        micro.response_ids if isinstance(micro, GroupBatch) else None,
        remat=remat,
        constrain=constrain,
        attention=attention,
    )
    learnt = jnp.take_along_axis(hidden, micro.loss_positions[..., None], axis=1)
    learnt = constrain(learnt, ("batch", None, None))
    head, layout = model.head()
    return target_logprobs(
        learnt,
        head,
        micro.loss_targets,
        micro.loss_weights > 0,
        layout=layout,
        batch_shards=batch_shards,
        constrain=constrain,
        entropy=entropy,
    )


def nll(
    model: Transformer, micro: Batch, weight_of_step: Float[Array, ""], **options: Any
) -> tuple[Float[Array, ""], Sums]:
    """The loss of one micro-batch (R rows) as its share of the step's, and the sums to report.

    `options` are those of `predict_targets`.
    """
    logprobs, correct = predict_targets(model, micro, **options)
    valid = micro.loss_weights > 0
    loss = -jnp.sum(micro.loss_weights * logprobs) / weight_of_step
    stopped = jax.lax.stop_gradient(logprobs)
    sums = Sums(
        loss=jax.lax.stop_gradient(loss),
        nll=-jnp.sum(jnp.where(valid, stopped, 0.0)),
        tokens=jnp.sum(valid, dtype=jnp.float32),
        verdicts=jnp.sum(micro.verdicts, dtype=jnp.float32),
        verdicts_right=jnp.sum(micro.verdicts & correct, dtype=jnp.float32),
    )
    return loss, sums


def sft_objective(config: SftConfig, sharding: ShardingPlan) -> Objective:
    """The negative log-likelihood."""
    return partial(nll, **sharding.objective_options(config.remat))
