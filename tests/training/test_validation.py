"""What a validation reports, from sums and from records."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rmr1_jax.data.packed_batch import Batch
from rmr1_jax.training.nll import Sums
from rmr1_jax.training.validation import loss_numbers, validation_loss, verdict_numbers


def sums(**values: float) -> Sums:
    return Sums(**{name: jnp.asarray(values.get(name, 0.0)) for name in Sums._fields})


def test_perplexity_is_of_tokens_whatever_the_loss_averages_over() -> None:
    numbers = loss_numbers(sums(loss=0.5, nll=20.0, tokens=10, verdicts=4, verdicts_right=3))
    assert numbers["loss"] == 0.5
    assert numbers["perplexity"] == pytest.approx(math.exp(2.0))
    assert numbers["verdict_token_accuracy"] == 0.75
    assert loss_numbers(sums(tokens=1))["verdict_token_accuracy"] is None


def test_the_validation_loss_weighs_batches_by_what_they_hold() -> None:
    losses = {1.0: 2.0, 3.0: 6.0}  # weight of a batch -> its mean loss
    batches = [_batch(weight) for weight in losses]

    def evaluate(params: Any, batch: Batch) -> Sums:
        weight = float(batch.loss_weights.sum())
        return sums(loss=losses[weight], nll=1.0, tokens=1.0)

    numbers = validation_loss(evaluate, {}, batches)
    assert numbers["validation/loss"] == pytest.approx((1 * 2.0 + 3 * 6.0) / 4)


def _batch(weight: float) -> Batch:
    empty = np.zeros((1, 1, 1))
    return Batch(empty, empty, empty, empty, empty, np.full((1, 1, 1), weight), empty)


def record(label: str, verdict: str | None) -> dict[str, Any]:
    return {"label": label, "verdict": verdict, "trace_tokens": 10}


def test_both_orders_are_reported_and_consistency_is_the_same_winner() -> None:
    numbers = verdict_numbers(
        [
            *(record("A", "A"), record("B", "B")),  # right in both orders
            *(record("A", "A"), record("B", "A")),  # always the first
            *(record("A", "B"), record("B", "A")),  # consistent, and wrong
            *(record("B", "B"), record("A", None)),
        ]
    )
    assert numbers["validation/verdict_accuracy"] == 4 / 8
    assert numbers["validation/verdict_accuracy_given"] == 3 / 4
    assert numbers["validation/verdict_accuracy_swapped"] == 1 / 4
    assert numbers["validation/consistent"] == 2 / 4
    assert numbers["validation/no_verdict"] == 1 / 8
