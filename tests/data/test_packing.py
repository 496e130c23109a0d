"""The plan of rows: nothing lost, nothing twice, nothing over the edge, little padding."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.padding import draw_lengths
from rmr1_jax.data.packing import Plan, Rows, choose_rows, plan, plan_in_order
from rmr1_jax.errors import UserError


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    pack_length = draw(st.sampled_from([16, 64, 256]))
    lengths = np.array(draw(st.lists(st.integers(2, pack_length), min_size=1, max_size=80)))
    share = draw(st.floats(0, 1))
    losses = np.maximum(1, (lengths - 1) * share).astype(int)
    rows, micro = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return {
        "lengths": lengths,
        "loss_lengths": losses,
        "shape": Rows(pack_length, micro, rows, 0.0),
    }


def rows_of(packed: Plan) -> list[list[int]]:
    return [part.tolist() for part in np.split(packed.sequences, packed.offsets[1:-1])]


def check_rows(packed: Plan, problem: dict[str, Any]) -> None:
    shape = problem["shape"]
    assert len(packed.offsets) - 1 == packed.steps * shape.per_step
    for row in rows_of(packed):
        assert problem["lengths"][row].sum() <= shape.pack_length
        assert problem["loss_lengths"][row].sum() <= packed.losses
    tokens = problem["lengths"][packed.sequences].sum()
    slots = packed.steps * shape.per_step * shape.pack_length
    assert packed.padding == pytest.approx(1 - tokens / slots)


class TestEpochs:
    @settings(max_examples=150)
    @given(problems(), st.sampled_from([0.3, 1, 2, 2.5]), st.integers(0, 3))
    def test_every_sequence_comes_once_in_each(
        self, problem: dict[str, Any], epochs: float, seed: int
    ) -> None:
        count = len(problem["lengths"])
        try:
            packed = plan(**problem, epochs=epochs, seed=seed)
        except UserError:
            return  # not one full step
        check_rows(packed, problem)
        seen = Counter(packed.sequences.tolist())
        assert max(seen.values()) <= -(-round(epochs * count) // count)
        assert sum(seen.values()) + packed.dropped == round(epochs * count)
        if not packed.dropped:
            assert min(seen[index] for index in range(count)) >= int(epochs)

    def test_come_in_a_seeded_order(self) -> None:
        lengths, losses = draw_lengths(2000)
        shape = choose_rows(lengths, 64, 2, 1, 12288)

        def planned(seed: int) -> Plan:
            return plan(lengths, losses, shape, epochs=1, seed=seed)

        assert planned(1).fingerprint == planned(1).fingerprint != planned(2).fingerprint
        # Packing moves a sequence by a few steps of 64, not across the epoch.
        order = np.random.default_rng(1).permutation(2000)
        place = np.empty(2000, int)
        place[order] = np.arange(2000)
        moved = place[planned(1).sequences] - np.arange(len(planned(1).sequences))
        assert np.median(np.abs(moved)) < 6 * 64

    def test_the_last_incomplete_step_is_dropped_and_counted(self) -> None:
        lengths = np.full(25, 16)
        packed = plan(lengths, lengths - 8, Rows(16, 2, 3, 6.0), epochs=1, seed=0)
        assert (packed.steps, packed.dropped, packed.mean_sequences) == (4, 1, 6.0)

    def test_too_few_sequences_for_a_step_are_refused(self) -> None:
        lengths = np.full(5, 16)
        with pytest.raises(UserError, match=r"5 rows of 16 tokens, and one step takes 6; lower"):
            plan(lengths, lengths - 8, Rows(16, 2, 3, 6.0), epochs=1, seed=0)


class TestInOrder:
    @settings(max_examples=100)
    @given(problems())
    def test_every_sequence_comes_once_and_empty_rows_fill_the_last_step(
        self, problem: dict[str, Any]
    ) -> None:
        packed = plan_in_order(**problem)
        check_rows(packed, problem)
        assert sorted(packed.sequences.tolist()) == list(range(len(problem["lengths"])))
        assert packed.dropped == 0
        empty = sum(not row for row in rows_of(packed))
        assert empty < problem["shape"].per_step


class TestSteps:
    def test_are_disjoint_and_complete(self) -> None:
        lengths, losses = draw_lengths(2000)
        shape = choose_rows(lengths, 64, 4, 1, 12288)
        packed = plan(lengths, losses, shape, epochs=1, seed=0)
        rows = [row for step in range(packed.steps) for row in packed.rows_of(step)]
        assert rows == list(range(packed.steps * shape.per_step))
        sequences = [packed.sequences_of(step) for step in range(packed.steps)]
        assert np.array_equal(np.concatenate(sequences), packed.sequences)

    def test_have_room_for_few_losses_more_than_there_are(self) -> None:
        lengths, losses = draw_lengths()
        shape = choose_rows(lengths, 128, 8, 1, 12288)
        packed = plan(lengths, losses, shape, epochs=1, seed=0)
        mean = losses[packed.sequences].sum() / (packed.steps * shape.per_step)
        assert packed.losses % 256 == 0
        assert packed.losses < 1.5 * mean


class TestRowLength:
    @pytest.mark.parametrize("prompt_spread", [0.6, 1.0])
    @pytest.mark.parametrize("row_multiple", [1, 8, 64])
    def test_leaves_less_than_3_percent_of_padding(
        self, row_multiple: int, prompt_spread: float
    ) -> None:
        """The length spread of RM-R1's traces, and one with longer tails."""
        lengths, losses = draw_lengths(prompt_spread=prompt_spread)
        shape = choose_rows(lengths, 128, row_multiple, 1, 12288)
        packed = plan(lengths, losses, shape, epochs=1, seed=0)
        assert packed.padding < 0.03
        assert packed.mean_sequences == pytest.approx(shape.mean_sequences, rel=0.05)
        if row_multiple < 64:  # 64 rows of the longest sequence hold more than 128 of them
            assert packed.mean_sequences == pytest.approx(128, rel=0.05)
        assert shape.pack_length % 128 == 0 and shape.pack_length >= lengths.max()

    @given(st.lists(st.integers(1, 700), min_size=1, max_size=40), st.integers(1, 64))
    @settings(max_examples=50)
    def test_takes_the_longest_sequence(self, lengths: list[int], batch_size: int) -> None:
        shape = choose_rows(np.array(lengths), batch_size, 2, 3, 1024)
        assert shape.pack_length >= max(lengths)
        assert shape.pack_length % (128 if max(lengths) > 512 else 16) == 0
        assert shape.rows == 6 and shape.micro_batches >= 1

    def test_is_short_for_short_sequences(self) -> None:
        shape = choose_rows(np.full(100, 250), 16, 1, 1, 12288)
        assert shape[:3] == (256, 16, 1)

    def test_can_be_given(self) -> None:
        lengths = np.full(100, 250)
        assert choose_rows(lengths, 16, 1, 1, 12288, pack_length=1000)[:3] == (1000, 4, 1)
        with pytest.raises(UserError, match="pack_length=249 is shorter than the longest"):
            choose_rows(lengths, 16, 1, 1, 12288, pack_length=249)
