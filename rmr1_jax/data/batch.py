"""What the pipeline gives and a training step takes."""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int


class Batch(NamedTuple):
    """Packed rows of one step, in S micro-batches of R rows of T tokens; W losses a row.

    A row holds several sequences, numbered from 1 in `segment_ids`; 0 is padding. The losses are
    kept apart from the tokens, so that the output head is computed only where something is learnt:
    the hidden state at `loss_positions` predicts `loss_targets`. `loss_weights` is 0 at padding;
    their sum over the batch is the number of what the loss averages over, sequences (each weighs 1)
    or tokens, so that a step's loss is sum(weights * nll) / sum(weights) whatever S is.
    """

    tokens: Int[Any, "S R T"]
    positions: Int[Any, "S R T"]
    segment_ids: Int[Any, "S R T"]
    loss_positions: Int[Any, "S R W"]
    loss_targets: Int[Any, "S R W"]
    loss_weights: Float[Any, "S R W"]
    verdicts: Bool[Any, "S R W"]
    """Where the target is the letter of the verdict."""
