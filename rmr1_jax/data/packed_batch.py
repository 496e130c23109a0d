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


class GroupBatch(NamedTuple):
    """Packed rows of groups: a prompt once, then responses to it. S, R, T and W as in `Batch`.

    A piece, one prompt and some or all of its responses, is numbered from 1 in its row by
    `segment_ids`. Responses are numbered from 1 through the row by `response_ids`; 0 is a prompt,
    and padding. A token attends to what comes at or before it in its segment on branch 0 or its
    own. Positions of a response go on after its prompt's.

    The hidden state at `loss_positions` predicts `loss_targets`: for the first token of a response
    that is the last token of the prompt, whichever response of the piece it is; the last token of a
    response is a target only. Losses come first in W, padding after them has weight 0.
    Micro-batches that hold nothing come last: S is a capacity.
    """

    tokens: Int[Any, "S R T"]
    positions: Int[Any, "S R T"]
    segment_ids: Int[Any, "S R T"]
    response_ids: Int[Any, "S R T"]
    loss_positions: Int[Any, "S R W"]
    loss_targets: Int[Any, "S R W"]
    loss_weights: Float[Any, "S R W"]
    loss_response_ids: Int[Any, "S R W"]
    """The branch of the target."""
    advantages: Float[Any, "S R W"]
    sampler_logprobs: Float[Any, "S R W"]
    """Of the distribution that the target was drawn from."""
    old_logprobs: Float[Any, "S R W"]
    """Before the first update of the step; 0 until computed. So are the next."""
    reference_logprobs: Float[Any, "S R W"]
