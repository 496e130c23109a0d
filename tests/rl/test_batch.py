"""Groups as rows: every response once, each prompt once a piece, little padding, the same again."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmr1_jax.data.packed_batch import GroupBatch
from rmr1_jax.errors import UserError
from rmr1_jax.rl.batch import Group, pack_groups, pack_length_for, packed_work


def make_group(prompt: int, responses: list[int], weights: list[float], seed: int = 0) -> Group:
    """Random tokens above 0 of these lengths."""
    rng = np.random.default_rng(seed)
    return Group(
        prompt=rng.integers(1, 9, prompt, dtype=np.int32),
        responses=tuple(rng.integers(1, 9, length, dtype=np.int32) for length in responses),
        sampler_logprobs=tuple(-rng.exponential(size=n).astype(np.float32) for n in responses),
        advantages=rng.normal(size=len(responses)).astype(np.float32),
        weights=np.array(weights, np.float32),
    )


@st.composite
def some_groups(draw: st.DrawFn) -> list[Group]:
    groups = []
    for seed in range(draw(st.integers(0, 12))):
        responses = draw(st.lists(st.integers(1, 60), min_size=1, max_size=7))
        weight = st.sampled_from([0.0, 0.25, 1.0, 1 / 3])
        weights = [draw(weight) for _ in responses]
        groups.append(make_group(draw(st.integers(1, 90)), responses, weights, seed))
    return groups


packings = st.tuples(some_groups(), st.sampled_from([150, 256, 700]), st.integers(1, 4))


class Learnt(NamedTuple):
    """One response as the objective sees it."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    weight: float
    advantage: float
    logprobs: tuple[float, ...]


def given_to_learn(groups: list[Group]) -> list[Learnt]:
    return sorted(
        Learnt(
            tuple(group.prompt.tolist()),
            tuple(response.tolist()),
            float(weight),
            float(advantage),
            tuple(logprobs.tolist()),
        )
        for group in groups
        for response, weight, advantage, logprobs in zip(
            group.responses, group.weights, group.advantages, group.sampler_logprobs, strict=True
        )
        if weight
    )


def rows_of(batch: GroupBatch) -> list[GroupBatch]:
    flat = (array.reshape(-1, array.shape[-1]) for array in batch)
    return [GroupBatch(*arrays) for arrays in zip(*flat, strict=True)]


def read_back(batch: GroupBatch) -> list[Learnt]:
    """Every response of a batch, found as the attention rule and the losses describe it."""
    found = []
    for row in rows_of(batch):
        for branch in range(1, row.loss_response_ids.max() + 1):
            losses = np.flatnonzero(row.loss_response_ids == branch)
            last_of_prompt, *inputs = row.loss_positions[losses].tolist()
            segment = row.segment_ids[last_of_prompt]
            prompt = np.flatnonzero((row.segment_ids == segment) & (row.response_ids == 0))
            assert prompt[-1] == last_of_prompt
            assert inputs == np.flatnonzero(row.response_ids == branch).tolist()
            assert (row.segment_ids[inputs] == segment).all()
            positions = row.positions[[*prompt, *inputs]]
            assert np.array_equal(positions, np.arange(len(positions)))
            targets = row.loss_targets[losses]
            assert np.array_equal(row.tokens[inputs], targets[:-1])
            [weight], [advantage] = (
                set(values[losses].tolist()) for values in (row.loss_weights, row.advantages)
            )
            logprobs = tuple(row.sampler_logprobs[losses].tolist())
            read = tuple(row.tokens[prompt].tolist())
            found.append(Learnt(read, tuple(targets.tolist()), weight, advantage, logprobs))
    return sorted(found)


class TestPacking:
    @settings(max_examples=200)
    @given(packings)
    def test_gives_every_response_once(self, packing: tuple[list[Group], int, int]) -> None:
        groups, pack_length, rows = packing
        batch = pack_groups(groups, pack_length=pack_length, rows=rows)
        assert read_back(batch) == given_to_learn(groups)
        total = sum(
            float(weight) * len(response)
            for group in groups
            for weight, response in zip(group.weights, group.responses, strict=True)
        )
        assert batch.loss_weights.sum() == pytest.approx(total, rel=1e-5)

    @settings(max_examples=200)
    @given(packings)
    def test_fills_rows_from_the_left_and_numbers_them_through(
        self, packing: tuple[list[Group], int, int]
    ) -> None:
        groups, pack_length, rows = packing
        batch = pack_groups(groups, pack_length=pack_length, rows=rows)
        assert batch.tokens.shape[1:] == (rows, pack_length)
        assert {array.shape for array in batch} == {batch.tokens.shape}
        for row in rows_of(batch):
            used = int((row.segment_ids > 0).sum())
            assert row.segment_ids[:used].all() and (np.diff(row.segment_ids[:used]) >= 0).all()
            assert set(row.segment_ids.tolist()) - {0} == set(range(1, row.segment_ids.max() + 1))
            assert (np.diff(row.response_ids[row.response_ids > 0]) >= 0).all()
            losses = int((row.loss_weights > 0).sum())
            assert (row.loss_weights[:losses] > 0).all()
            assert (np.diff(row.loss_response_ids[:losses]) >= 0).all()
            for array in (row.tokens, row.positions, row.response_ids):
                assert not array[used:].any()
            for array in row[4:]:
                assert not array[losses:].any()
            assert not row.old_logprobs.any() and not row.reference_logprobs.any()

    @settings(max_examples=100)
    @given(packings)
    def test_stores_a_prompt_once_a_piece(self, packing: tuple[list[Group], int, int]) -> None:
        groups, pack_length, rows = packing
        batch = pack_groups(groups, pack_length=pack_length, rows=rows)
        for row in rows_of(batch):
            starts = (row.positions == 0) & (row.segment_ids > 0)
            assert row.segment_ids[starts].tolist() == list(range(1, row.segment_ids.max() + 1))
            assert not row.response_ids[starts].any()

    @settings(max_examples=100)
    @given(packings)
    def test_puts_empty_micro_batches_last(self, packing: tuple[list[Group], int, int]) -> None:
        groups, pack_length, rows = packing
        batch = pack_groups(groups, pack_length=pack_length, rows=rows)
        holding = (batch.loss_weights > 0).any(axis=(1, 2)).tolist()
        assert holding == sorted(holding, reverse=True)
        ladder = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96]
        assert len(holding) == min(size for size in ladder if size >= sum(holding))

    @settings(max_examples=50)
    @given(packings)
    def test_gives_the_same_again(self, packing: tuple[list[Group], int, int]) -> None:
        groups, pack_length, rows = packing
        first, second = (pack_groups(groups, pack_length=pack_length, rows=rows) for _ in range(2))
        for one, other in zip(first, second, strict=True):
            assert np.array_equal(one, other)

    def test_has_the_types_that_are_compiled_for(self) -> None:
        batch = pack_groups([make_group(3, [2, 2], [1, 1])], pack_length=8, rows=1)
        types = {name: str(array.dtype) for name, array in batch._asdict().items()}
        floats = {"loss_weights", "advantages", "sampler_logprobs", "old_logprobs"}
        floats.add("reference_logprobs")
        assert {name for name, dtype in types.items() if dtype == "float32"} == floats
        assert set(types.values()) == {"float32", "int32"}


def test_a_row_reads_as_its_description_says() -> None:
    group = Group(
        prompt=np.array([5, 6], np.int32),
        responses=(np.array([7, 8, 9], np.int32), np.array([4], np.int32)),
        sampler_logprobs=(np.array([-1, -2, -3], np.float32), np.array([-4], np.float32)),
        advantages=np.array([0.5, -0.5]),
        weights=np.array([0.25, 1.0]),
    )
    [row] = rows_of(pack_groups([group], pack_length=6, rows=1))
    assert row.tokens.tolist() == [5, 6, 7, 8, 0, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 0, 0]
    assert row.segment_ids.tolist() == [1, 1, 1, 1, 0, 0]
    assert row.response_ids.tolist() == [0, 0, 1, 1, 0, 0]
    assert row.loss_positions.tolist() == [1, 2, 3, 1, 0, 0]
    assert row.loss_targets.tolist() == [7, 8, 9, 4, 0, 0]
    assert row.loss_response_ids.tolist() == [1, 1, 1, 2, 0, 0]
    assert row.loss_weights.tolist() == [0.25, 0.25, 0.25, 1, 0, 0]
    assert row.advantages.tolist() == [0.5, 0.5, 0.5, -0.5, 0, 0]
    assert row.sampler_logprobs.tolist() == [-1, -2, -3, -4, 0, 0]


class TestPieces:
    def test_a_group_longer_than_a_row_is_divided(self) -> None:
        group = make_group(40, [21] * 7, [1] * 7)
        batch = pack_groups([group], pack_length=100, rows=1)
        assert read_back(batch) == given_to_learn([group])
        assert [int(row.response_ids.max()) for row in rows_of(batch)] == [3, 3, 1]

    def test_a_group_is_divided_where_that_saves_a_row(self) -> None:
        groups = [make_group(10, [31, 31], [1, 1], seed) for seed in range(3)]
        batch = pack_groups(groups, pack_length=110, rows=1)  # each takes 70
        assert read_back(batch) == given_to_learn(groups)
        assert [int(row.segment_ids.max()) for row in rows_of(batch)] == [2, 2]

    def test_a_group_stays_whole_where_dividing_saves_nothing(self) -> None:
        groups = [make_group(10, [31, 31], [1, 1], seed) for seed in range(3)]
        batch = pack_groups(groups, pack_length=110, rows=4)
        assert [int(row.segment_ids.max()) for row in rows_of(batch)] == [1, 1, 1, 0]

    def test_groups_are_spread_evenly_where_none_is_divided(self) -> None:
        groups = [make_group(10, [11 + seed], [1], seed) for seed in range(12)]
        batch = pack_groups(groups, pack_length=100, rows=2)
        fill = (batch.segment_ids > 0).sum(axis=-1)
        assert fill.shape == (2, 2) and fill.max() - fill.min() <= 4

    def test_more_responses_than_tokens_of_the_prompt_find_room_for_their_losses(self) -> None:
        group = make_group(1, [1] * 20, [1] * 20)
        batch = pack_groups([group], pack_length=8, rows=1)
        assert read_back(batch) == given_to_learn([group])

    def test_a_response_that_fits_no_row_is_refused(self) -> None:
        with pytest.raises(ValueError, match="prompt of 60 tokens and a response of 42 do not fit"):
            pack_groups([make_group(60, [42], [1])], pack_length=100, rows=1)
        pack_groups([make_group(60, [41], [1])], pack_length=100, rows=1)


class TestNothingToLearn:
    def test_a_response_of_weight_0_is_left_out(self) -> None:
        groups = [make_group(10, [30, 20], [0, 1]), make_group(10, [5, 5], [0, 0], seed=1)]
        batch = pack_groups(groups, pack_length=64, rows=1)
        assert int((batch.segment_ids > 0).sum()) == 10 + 19
        assert read_back(batch) == given_to_learn(groups)

    def test_it_need_not_fit_a_row(self) -> None:
        groups = [make_group(10, [3000, 20], [0, 1])]
        assert pack_length_for([groups], rows=1, at_most=256) == 256

    @pytest.mark.parametrize("groups", [[], [make_group(10, [5], [0])]])
    def test_gives_one_micro_batch_of_padding(self, groups: list[Group]) -> None:
        batch = pack_groups(
            groups, pack_length=pack_length_for([groups], rows=2, at_most=4096), rows=2
        )
        assert batch.tokens.shape == (1, 2, 256)
        assert not any(array.any() for array in batch)
        assert packed_work(groups, batch).computed == packed_work(groups, batch).padding == 0


class TestRowLength:
    @pytest.mark.parametrize(
        ("prompt", "responses", "number", "at_most", "expected"),
        [
            (1500, [700] * 7, 16, 12288, 12288),
            (1500, [700] * 7, 16, 5000, 5120),
            (1500, [700] * 7, 1, 12288, 8192),
            (100, [20] * 4, 1, 4096, 256),
            (100, [20] * 4, 4, 4096, 1024),
            (100, [20] * 4, 100, 4096, 3072),
            (100, [20] * 4, 100, 1000, 1024),
            (2000, [50, 49], 5, 4096, 3072),
            (9000, [4000], 1, 16384, 16384),
        ],
    )
    def test_comes_from_few_values(
        self, prompt: int, responses: list[int], number: int, at_most: int, expected: int
    ) -> None:
        groups = [make_group(prompt, responses, [1] * len(responses))] * number
        assert pack_length_for([groups], rows=1, at_most=at_most) == expected

    @settings(max_examples=100)
    @given(some_groups(), st.integers(1, 800))
    def test_is_enough_or_refused(self, groups: list[Group], at_most: int) -> None:
        try:
            pack_length = pack_length_for([groups], rows=1, at_most=at_most)
        except UserError:
            longest = max(group.size([index]) for group in groups for index in group.kept)
            assert longest > at_most
        else:
            assert pack_length < at_most + 128
            pack_groups(groups, pack_length=pack_length, rows=1)

    def test_computes_the_fewest_positions(self) -> None:
        groups = [make_group(256, [64] * 7, [1] * 7, seed) for seed in range(4)]
        # 697 positions each: two in a row of 2,048 leave a third of it empty, four fill 3,072.
        assert pack_length_for([groups], rows=1, at_most=12288) == 3072

    def test_is_no_less_than_before(self) -> None:
        groups = [make_group(100, [20] * 4, [1] * 4)]
        assert pack_length_for([groups], rows=1, at_most=4096, least=1024) == 1024

    def test_that_cannot_hold_a_response_is_refused(self) -> None:
        groups = [make_group(9, [9], [1]), make_group(900, [50, 200], [1, 1])]
        with pytest.raises(
            UserError, match="900 tokens and a response of 200 do not fit a row of at most 1024"
        ):
            pack_length_for([groups], rows=1, at_most=1000)


def paper_sized(seed: int, groups: int = 128) -> list[Group]:
    """Lengths spread like RM-R1's: prompts of about 1,500 tokens, responses of about 700."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(groups):
        prompt = int(np.clip(rng.lognormal(np.log(1500) - 0.18, 0.6), 150, 4096))
        responses = np.clip(rng.lognormal(np.log(700) - 0.125, 0.5, 7), 32, 8192).astype(int)
        found.append(make_group(prompt, responses.tolist(), [1] * 7, number))
    return found


class TestPaperSize:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("rows", [1, 4])
    def test_little_is_padding(self, seed: int, rows: int) -> None:
        groups = paper_sized(seed)
        pack_length = pack_length_for([groups], rows=rows, at_most=12288)
        batch = pack_groups(groups, pack_length=pack_length, rows=rows)
        work = packed_work(groups, batch)
        assert work.padding < 0.12
        assert work.computed < 0.25 * work.naive

    def test_rows_computed_together_are_about_equally_full(self) -> None:
        groups = paper_sized(0)
        batch = pack_groups(groups, pack_length=12288, rows=4)
        fill = (batch.segment_ids > 0).mean(axis=-1)
        fill = fill[fill.any(axis=1)]
        assert (fill.max(axis=1) - fill.min(axis=1))[:-1].max() < 0.15


def test_the_work_of_a_pass_is_counted() -> None:
    groups = [make_group(10, [6, 11], [1, 1]), make_group(20, [31, 9], [1, 0], seed=1)]
    batch = pack_groups(groups, pack_length=100, rows=2)
    work = packed_work(groups, batch)
    assert work.computed == 200
    assert work.tokens == 10 + 5 + 10 + 20 + 30
    assert work.padding == pytest.approx(1 - 75 / 200)
    assert work.naive == 4 * (20 + 31)
