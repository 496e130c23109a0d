"""The pipeline: the arrays of a step, whose rows they are, and going on where it stood."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rmr1_jax.data.batch_loader import Loss, batches
from rmr1_jax.data.example import Example
from rmr1_jax.data.packed_batch import Batch
from rmr1_jax.data.packing import Plan, Rows, plan, plan_in_order
from rmr1_jax.data.token_cache import TokenCache, token_cache
from rmr1_jax.data.tokenize import TokenizeOptions
from rmr1_jax.errors import UserError
from rmr1_jax.judging import reasoning

SHAPE = Rows(pack_length=256, micro_batches=2, rows=4, mean_sequences=0.0)


@pytest.fixture(scope="module")
def cache(
    tmp_path_factory: pytest.TempPathFactory,
    traced: list[Example],
    chatml: PreTrainedTokenizerFast,
) -> TokenCache:
    root, options = tmp_path_factory.mktemp("cache"), TokenizeOptions(max_length=120)
    return token_cache(root, traced, "traced", chatml, reasoning(), options)


@pytest.fixture(scope="module")
def train(cache: TokenCache) -> Plan:
    return plan(cache.lengths, cache.loss_lengths, SHAPE, epochs=6, seed=1, loss_chunk=16)


def slow(cache: TokenCache, plan: Plan, step: int, loss: Loss) -> Batch:
    """A batch as its description reads, one token at a time."""
    shape = plan.shape
    tokens, positions, segments = (
        np.zeros((shape.micro_batches, shape.rows, shape.pack_length), int) for _ in range(3)
    )
    loss_positions, targets, weights, verdicts = (
        np.zeros((shape.micro_batches, shape.rows, plan.losses)) for _ in range(4)
    )
    for index, row in enumerate(plan.rows_of(step)):
        place = divmod(index, shape.rows)
        column = losses = 0
        sequences = plan.sequences[plan.offsets[row] : plan.offsets[row + 1]]
        for segment, number in enumerate(sequences, start=1):
            sequence = cache[number]
            learnt = len(sequence.tokens) - sequence.loss_from
            for position, token in enumerate(sequence.tokens):
                tokens[place][column] = token
                positions[place][column] = position
                segments[place][column] = segment
                if position >= sequence.loss_from:
                    loss_positions[place][losses] = column - 1
                    targets[place][losses] = token
                    weights[place][losses] = 1 / learnt if loss == "sequence_mean" else 1
                    verdicts[place][losses] = position == sequence.verdict
                    losses += 1
                column += 1
    return Batch(tokens, positions, segments, loss_positions, targets, weights, verdicts)


def assert_equal(actual: Batch, expected: Batch) -> None:
    for name, array, other in zip(Batch._fields, actual, expected, strict=True):
        assert array.shape == other.shape, name
        np.testing.assert_allclose(array, other, rtol=1e-6, err_msg=name)


class TestBatch:
    @pytest.mark.parametrize("loss", ["sequence_mean", "token_mean"])
    def test_is_what_its_description_says(self, loss: Loss, cache: TokenCache, train: Plan) -> None:
        assert train.steps >= 4
        for step, batch in enumerate(batches(cache, train, loss=loss)):
            assert_equal(batch, slow(cache, train, step, loss))

    def test_has_the_types_that_are_compiled_for(self, cache: TokenCache, train: Plan) -> None:
        batch = next(batches(cache, train, loss="sequence_mean"))
        assert [array.dtype for array in batch] == [np.int32] * 5 + [np.float32, np.bool_]

    def test_predicts_each_target_from_the_token_before_it(
        self, cache: TokenCache, train: Plan
    ) -> None:
        for batch in batches(cache, train, loss="token_mean"):
            used = batch.loss_weights > 0
            here = np.take_along_axis(batch.tokens, batch.loss_positions + 1, axis=-1)
            assert np.array_equal(here[used], batch.loss_targets[used])
            before, after = (
                np.take_along_axis(batch.segment_ids, batch.loss_positions + shift, axis=-1)
                for shift in (0, 1)
            )
            assert np.array_equal(before[used], after[used]) and (before[used] > 0).all()

    def test_weights_add_up_to_what_the_loss_averages_over(
        self, cache: TokenCache, train: Plan
    ) -> None:
        for step, batch in enumerate(batches(cache, train, loss="sequence_mean")):
            assert batch.loss_weights.sum() == pytest.approx(len(train.sequences_of(step)))
        for step, batch in enumerate(batches(cache, train, loss="token_mean")):
            assert batch.loss_weights.sum() == cache.loss_lengths[train.sequences_of(step)].sum()

    def test_marks_the_letter_of_each_verdict(
        self, cache: TokenCache, train: Plan, chatml: PreTrainedTokenizerFast
    ) -> None:
        for step, batch in enumerate(batches(cache, train, loss="sequence_mean")):
            with_verdict = (cache.verdict[train.sequences_of(step)] >= 0).sum()
            assert batch.verdicts.sum() == with_verdict
            assert {"A"} == {chatml.decode([token]) for token in batch.loss_targets[batch.verdicts]}

    def test_of_a_validation_plan_ends_with_empty_rows(self, cache: TokenCache) -> None:
        shape = Rows(pack_length=128, micro_batches=1, rows=16, mean_sequences=0.0)
        validation = plan_in_order(cache.lengths, cache.loss_lengths, shape, loss_chunk=16)
        *_, last = (batch for batch in batches(cache, validation, loss="sequence_mean"))
        assert_equal(last, slow(cache, validation, validation.steps - 1, "sequence_mean"))
        empty = (last.segment_ids == 0).all(axis=-1)
        assert empty.any() and not last.loss_weights[empty].any()


@pytest.mark.parametrize("processes", [2, 4])
class TestProcesses:
    def test_share_the_rows_of_a_step(self, processes: int, cache: TokenCache, train: Plan) -> None:
        alone = batches(cache, train, loss="sequence_mean")
        shared = [
            batches(
                cache, train, loss="sequence_mean", process_index=index, process_count=processes
            )
            for index in range(processes)
        ]
        for whole, *parts in zip(alone, *shared, strict=True):
            joined = Batch(*(np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)))
            assert_equal(joined, whole)


def test_processes_that_cannot_share_the_rows_are_refused(cache: TokenCache, train: Plan) -> None:
    with pytest.raises(UserError, match="4 rows cannot be shared by 3 processes"):
        batches(cache, train, loss="sequence_mean", process_index=0, process_count=3)


class TestGoingOn:
    @pytest.fixture
    def start(self, cache: TokenCache, train: Plan) -> Callable[..., Any]:
        return lambda **options: batches(cache, train, loss="sequence_mean", **options)

    def test_after_any_step_gives_what_an_unbroken_run_gives(
        self, start: Callable[..., Any], train: Plan
    ) -> None:
        unbroken = list(start())
        for killed_after in range(train.steps + 1):
            first = start(prefetch=3)
            for _ in range(killed_after):
                next(first)
            state = json.loads(json.dumps(first.get_state()))
            first.close()
            second = start()
            next(second)  # what it did before does not matter
            second.set_state(state)
            assert second.step == killed_after
            rest = list(second)
            assert len(rest) == train.steps - killed_after
            for actual, expected in zip(rest, unbroken[killed_after:], strict=True):
                assert_equal(actual, expected)

    def test_can_start_at_any_step(self, start: Callable[..., Any]) -> None:
        unbroken = list(start())
        iterator = start(start_step=2)
        assert iterator.step == 2
        assert_equal(next(iterator), unbroken[2])

    def test_with_other_data_is_refused(self, start: Callable[..., Any], cache: TokenCache) -> None:
        other = plan(cache.lengths, cache.loss_lengths, SHAPE, epochs=6, seed=2, loss_chunk=16)
        with pytest.raises(UserError, match="have changed since the checkpoint"):
            batches(cache, other, loss="sequence_mean").set_state(start().get_state())


def test_a_step_names_its_examples(
    cache: TokenCache, train: Plan, traced: list[Example], chatml: PreTrainedTokenizerFast
) -> None:
    iterator = batches(cache, train, loss="sequence_mean")
    traces = {example.id: example.trace or "" for example in traced}
    for step, batch in enumerate(iterator):
        ids = iterator.steps.ids_of(step)
        assert len(ids) == (batch.positions == 0)[batch.segment_ids > 0].sum()
        text = chatml.decode(batch.tokens.reshape(-1))
        assert all(traces[id][:40] in text for id in ids)


def test_the_cache_may_have_been_read_from_elsewhere(
    cache: TokenCache, train: Plan, tmp_path: Path
) -> None:
    """A workdir that moved: the key is the name of the cache, not its place."""
    moved = tmp_path / cache.key
    moved.symlink_to(cache.directory)
    state = batches(cache, train, loss="sequence_mean", start_step=1).get_state()
    elsewhere = batches(TokenCache(moved), train, loss="sequence_mean")
    elsewhere.set_state(state)
    assert elsewhere.step == 1
