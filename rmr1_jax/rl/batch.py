"""Groups as rows of tokens: each prompt is computed once for the responses beside it.

Groups go into rows of one fixed length, whole where they fit. Where that saves a micro-batch, and
where a group is longer than a row, its responses are divided into pieces, each with the prompt.
What comes out depends on what is given and on nothing else, so that a resumed run packs alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rmr1_jax.config import GrpoConfig
from rmr1_jax.data.packed_batch import GroupBatch
from rmr1_jax.errors import UserError
from rmr1_jax.rl.advantage import token_weights
from rmr1_jax.rl.rollout import Experience
from rmr1_jax.training.metrics import Numbers

LEAST_ROW = 2048
"""Rows are no shorter where there is that much to compute: short ones pack badly."""
_UNIT = 128
_LENGTHS_TRIED = 6
_DTYPES = (*[np.int32] * 6, np.float32, np.int32, *[np.float32] * 4)


@dataclass(frozen=True, eq=False)
class Group:
    """A prompt and the G responses sampled for it.

    Args:
      prompt: its tokens, at least one.
      responses: tokens of each, the stop token included.
      sampler_logprobs: of those tokens, under the distribution they were drawn from.
      weights: in the loss, of each token of that response. A response of weight 0 is not computed.
    """

    prompt: Int[np.ndarray, " P"]
    responses: tuple[Int[np.ndarray, " R_g"], ...]
    sampler_logprobs: tuple[Float[np.ndarray, " R_g"], ...]
    advantages: Float[np.ndarray, " G"]
    weights: Float[np.ndarray, " G"]

    @property
    def kept(self) -> list[int]:
        """The responses that are computed."""
        return [
            index for index in np.flatnonzero(self.weights).tolist() if len(self.responses[index])
        ]

    def size(self, responses: Sequence[int]) -> int:
        """Columns of a row that the prompt and those responses take.

        The last token of a response is only predicted. A row has as many losses as columns, which
        binds where there are more responses than tokens of the prompt.
        """
        inputs = sum(len(self.responses[index]) for index in responses) - len(responses)
        return max(len(self.prompt), len(responses)) + inputs


def groups_of(
    experience: Experience, advantage: Float[np.ndarray, "N G"], config: GrpoConfig
) -> list[Group]:
    """The groups of a mini-batch; what their tokens weigh depends on all of them."""
    flat = [sample for group in experience.samples for sample in group]
    masked = config.reward.truncated == "mask"
    weights = token_weights(
        np.array([len(sample.tokens) for sample in flat]),
        config.objective.reduction,
        config.objective.pool,
        np.array([not masked or sample.finish_reason == "stop" for sample in flat]),
    ).reshape(len(experience), -1)
    return [
        Group(
            prompt=prompt.tokens,
            responses=tuple(sample.tokens for sample in group),
            sampler_logprobs=tuple(sample.sampled_logprobs for sample in group),
            advantages=worth.astype(np.float32),
            weights=weight.astype(np.float32),
        )
        for (_, prompt), group, worth, weight in zip(
            experience.prompts, experience.samples, advantage, weights, strict=True
        )
    ]


class PackedWork(NamedTuple):
    """Positions of one pass over packed groups.

    `computed` are those of all rows of all micro-batches that hold something; `tokens` those that
    had to be, each prompt once; `naive` those of one row a response, padded to the longest prompt
    and the longest response.
    """

    computed: int
    tokens: int
    naive: int

    @property
    def padding(self) -> float:
        """The share of what is computed that is padding, or a prompt again."""
        return 1 - self.tokens / self.computed if self.computed else 0.0


def longest_row(config: GrpoConfig) -> int:
    """Tokens of a packed row of groups, at the most."""
    longest = config.data.max_prompt + config.rollout.max_response
    return config.pack_length or max(longest, 2 * LEAST_ROW)


def pack_length_for(
    mini_batches: Sequence[Sequence[Group]], *, rows: int, at_most: int, least: int = 0
) -> int:
    """The length of rows for the mini-batches of a step: of a few values, that with which the
    fewest positions are computed, `rows` rows at a time.

    It holds the largest group whole, unless that takes more than `at_most` (rounded up to a
    multiple of 128), and is `least` or more: another length is another program to compile. Raises
    UserError where a prompt and one response take more than `at_most`.
    """
    sizes = [[group.size(group.kept) for group in groups if group.kept] for groups in mini_batches]
    largest = max((size for each in sizes for size in each), default=0)
    wanted = max(largest, least, min(max(map(sum, sizes), default=0), LEAST_ROW))
    longest = max(-(-at_most // _UNIT) * _UNIT, least)
    shortest = min(_next_pack_length(wanted), longest)
    if largest > shortest:
        _refuse_what_fits_no_row(mini_batches, shortest)
    lengths = [shortest]
    while len(lengths) < _LENGTHS_TRIED and lengths[-1] < longest:
        lengths.append(min(_next_pack_length(lengths[-1] + 1), longest))

    def computed(pack_length: int) -> int:
        filled = (len(_fill_rows(groups, pack_length, rows)) for groups in mini_batches)
        return sum(-(-number // rows) for number in filled) * rows * pack_length

    return min(lengths, key=computed)


def _refuse_what_fits_no_row(mini_batches: Sequence[Sequence[Group]], pack_length: int) -> None:
    most, group, index = max(
        (
            (group.size([index]), group, index)
            for groups in mini_batches
            for group in groups
            for index in group.kept
        ),
        key=itemgetter(0),
    )
    if most > pack_length:
        raise UserError(
            f"a prompt of {len(group.prompt)} tokens and a response of "
            f"{len(group.responses[index])} do not fit a row of at most {pack_length}; raise "
            "the longest row, or lower the longest prompt or response"
        )


def pack_groups(
    groups: Sequence[Group], *, pack_length: int, rows: int, least: int = 1
) -> GroupBatch:
    """Every response whose weight is not 0, once, in as few micro-batches as can be found.

    The rows of a micro-batch are about equally full, since devices wait for each other, and
    micro-batches as well where no group had to be divided. Without any response there is one
    micro-batch of padding.

    Args:
      pack_length: T; at least that of `pack_length_for`.
      rows: R, the rows computed at a time.
      least: S is no less; what holds nothing is not computed.

    Raises ValueError where a prompt and one response do not fit a row.
    """
    filled = _fill_rows(groups, pack_length, rows)
    micro_batches = max(_next_count(-(-len(filled) // rows)), least)
    return _laid_out(groups, filled, (micro_batches, rows, pack_length))


def packed_work(groups: Sequence[Group], batch: GroupBatch) -> PackedWork:
    """What a pass over these groups costs in this layout, and in the naive one."""
    _, rows, pack_length = batch.tokens.shape
    holding = int((batch.loss_weights != 0).any(axis=(1, 2)).sum())
    responses = [len(response) for group in groups for response in group.responses]
    longest = max((len(group.prompt) for group in groups), default=0) + max(responses, default=0)
    return PackedWork(
        computed=holding * rows * pack_length,
        tokens=sum(
            len(group.prompt) + sum(len(group.responses[index]) - 1 for index in group.kept)
            for group in groups
            if group.kept
        ),
        naive=len(responses) * longest,
    )


def packing_numbers(work: Iterable[PackedWork]) -> Numbers:
    """What the layout of a step costs: its padding, and its share of the naive layout."""
    work = list(work)
    computed, tokens, naive = (sum(column) for column in zip(*work, strict=True))
    return {
        "padding": 1 - tokens / max(computed, 1),
        "share_of_naive": computed / max(naive, 1),
    }


class _Piece(NamedTuple):
    """Some responses of a group, the longest first."""

    group: int
    responses: list[int]
    size: int


_Row = list[tuple[int, int]]  # (group, response), ascending


def _fill_rows(groups: Sequence[Group], pack_length: int, rows: int) -> list[_Row]:
    """Which responses share a row, the fullest row first."""
    pieces = _pieces(groups, pack_length)
    least = -(-sum(piece.size for piece in pieces) // (rows * pack_length))
    while pieces:
        tight = _tightly(groups, pieces, least * rows, pack_length)
        if tight is not None:
            return _evenly(groups, pieces, least * rows, pack_length) or tight
        least += max(1, least // 64)
    return []


def _pieces(groups: Sequence[Group], pack_length: int) -> list[_Piece]:
    """Groups, the largest first; one that is longer than a row in as few pieces as it takes."""
    pieces = []
    for number, group in enumerate(groups):
        rest = sorted(group.kept, key=lambda index: -len(group.responses[index]))
        while rest:
            taken = rest if group.size(rest) <= pack_length else _that_fit(group, rest, pack_length)
            if not taken:
                raise ValueError(
                    f"a prompt of {len(group.prompt)} tokens and a response of "
                    f"{len(group.responses[rest[0]])} do not fit a row of {pack_length}"
                )
            pieces.append(_Piece(number, taken, group.size(taken)))
            rest = [index for index in rest if index not in taken]
    return sorted(pieces, key=lambda piece: -piece.size)


def _that_fit(group: Group, responses: Iterable[int], space: int) -> list[int]:
    """Those of the responses, each if it still fits, that go with the prompt into `space`."""
    taken: list[int] = []
    for index in responses:
        if group.size([*taken, index]) <= space:
            taken.append(index)
    return taken


def _evenly(
    groups: Sequence[Group], pieces: Sequence[_Piece], rows: int, pack_length: int
) -> list[_Row] | None:
    """Each piece in the emptiest row; None where one does not fit there."""
    held: list[_Row] = [[] for _ in range(rows)]
    left = np.full(rows, pack_length)
    for piece in pieces:
        row = int(left.argmax())
        if left[row] < piece.size:
            return None
        left[row] -= piece.size
        held[row] += [(piece.group, index) for index in piece.responses]
    return _fullest_first(held, left)


def _tightly(
    groups: Sequence[Group], pieces: Sequence[_Piece], rows: int, pack_length: int
) -> list[_Row] | None:
    """Each piece in the fullest row that takes it, else divided among the emptiest; None where
    that is not enough."""
    held: list[_Row] = [[] for _ in range(rows)]
    left = np.full(rows, pack_length)
    for piece in pieces:
        group, rest = groups[piece.group], piece.responses
        best = int(np.where(left >= piece.size, left, pack_length + 1).argmin())
        if left[best] >= piece.size:
            left[best] -= piece.size
            held[best] += [(piece.group, index) for index in rest]
            continue
        while rest:
            row = int(left.argmax())
            taken = _that_fit(group, rest, int(left[row]))
            if not taken:
                return None
            left[row] -= group.size(taken)
            held[row] += [(piece.group, index) for index in taken]
            rest = [index for index in rest if index not in taken]
    return _fullest_first(held, left)


def _fullest_first(held: list[_Row], left: Int[np.ndarray, " rows"]) -> list[_Row]:
    return [sorted(held[row]) for row in left.argsort(kind="stable") if held[row]]


def _laid_out(
    groups: Sequence[Group], filled: Sequence[_Row], shape: tuple[int, int, int]
) -> GroupBatch:
    """The arrays. Where two pieces of a group met in a row they share the prompt."""
    batch = GroupBatch(*(np.zeros(shape, dtype) for dtype in _DTYPES))
    for number, places in enumerate(filled):
        row = GroupBatch(*(array.reshape(-1, shape[-1])[number] for array in batch))
        column = loss = response_id = 0
        for segment, (index, pieces) in enumerate(groupby(places, key=itemgetter(0)), start=1):
            group = groups[index]
            prompt = len(group.prompt)
            here = slice(column, column + prompt)
            row.tokens[here] = group.prompt
            row.positions[here] = np.arange(prompt)
            row.segment_ids[here] = segment
            column = here.stop
            last_of_prompt = column - 1
            for _, response in pieces:
                response_id += 1
                targets = group.responses[response]
                here = slice(column, column + len(targets) - 1)
                row.tokens[here] = targets[:-1]
                row.positions[here] = np.arange(prompt, prompt + len(targets) - 1)
                row.segment_ids[here] = segment
                row.response_ids[here] = response_id
                losses = slice(loss, loss + len(targets))
                row.loss_positions[loss] = last_of_prompt
                row.loss_positions[loss + 1 : losses.stop] = np.arange(here.start, here.stop)
                row.loss_targets[losses] = targets
                row.loss_weights[losses] = group.weights[response]
                row.loss_response_ids[losses] = response_id
                row.advantages[losses] = group.advantages[response]
                row.sampler_logprobs[losses] = group.sampler_logprobs[response]
                column, loss = here.stop, losses.stop
    return batch


def _next_pack_length(wanted: int) -> int:
    return _next(wanted, (256, 512), 1024)


def _next_count(wanted: int) -> int:
    return _next(wanted, (1,), 2)


def _next(wanted: int, first: Sequence[int], power: int) -> int:
    """The smallest that is enough of `first`, then power, 1.5 power, 2 power, 3 power, ..."""
    for enough in first:
        if enough >= wanted:
            return enough
    while 3 * power // 2 < wanted:
        power *= 2
    return power if power >= wanted else 3 * power // 2
