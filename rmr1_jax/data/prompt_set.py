"""Labelled prompts for reinforcement learning, and the order that a run asks them in.

As published (rl_dataset.py, spec §4.4): the chat template with generation prompt, tokenised without
special tokens of its own; a prompt that is too long is dropped; a seeded order.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import batched, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from jaxtyping import Int, Int8
from jinja2.exceptions import TemplateError

from rmr1_jax.data.example import Example
from rmr1_jax.data.preference_file import Rejects
from rmr1_jax.data.row_files import decode_row, row_text
from rmr1_jax.data.sources import Row, RowSource, open_source
from rmr1_jax.data.token_cache import AT_A_TIME, Lengths
from rmr1_jax.data.tokenize import chat_text, check_template
from rmr1_jax.data.traces import TRACES
from rmr1_jax.errors import UserError
from rmr1_jax.judging import JudgePrompt, RecordError, Side

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Dropped = Literal["too_long", "no_label", "template_refuses", "unreadable", "filtered"]
SIDES: tuple[Side, Side] = ("A", "B")
PUBLISHED_SEED = 1
Progress = Callable[[int], None]
"""Called with the records read so far."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a judge reads, in tokens, and the answer that is right."""

    id: str
    tokens: Int[np.ndarray, " P"]
    label: Side


@dataclass(frozen=True)
class PromptCounts:
    """What became of the records; `lengths` are tokens of the prompts kept."""

    records: int
    kept: int
    dropped: dict[Dropped, int]
    lengths: Lengths


@dataclass(frozen=True, eq=False)
class PromptSet:
    """Prompts in random access; only tokens, labels and ids are held.

    Prompt i has `tokens[offsets[i]:offsets[i + 1]]`, and SIDES[labels[i]] is right.
    """

    tokens: Int[np.ndarray, " M"]
    offsets: Int[np.ndarray, " N+1"]
    labels: Int8[np.ndarray, " N"]
    ids: tuple[str, ...]
    counts: PromptCounts
    orders: int = 1
    """2: prompts 2i and 2i + 1 are the two orders of a pair."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Prompt:
        start, end = self.offsets[index : index + 2]
        return Prompt(self.ids[index], self.tokens[start:end], SIDES[self.labels[index]])

    @cached_property
    def shared(self) -> Int[np.ndarray, " C"]:
        """The tokens that all prompts begin with: what a judge is told before the question."""
        shared = self[0].tokens
        for index in range(1, len(self)):
            tokens = self[index].tokens[: len(shared)]
            unlike = np.flatnonzero(tokens != shared[: len(tokens)])
            shared = tokens[: unlike[0]] if len(unlike) else tokens
        return shared

    @cached_property
    def fingerprint(self) -> str:
        """A digest of prompts and labels, by which a resumed run knows that they are the same."""
        digest = hashlib.sha256()
        for array in (self.offsets, self.labels, self.tokens):
            digest.update(array.tobytes())
        return digest.hexdigest()


def open_prompts(
    path: str,
    tokenizer: "PreTrainedTokenizerBase",
    prompt: JudgePrompt | None,
    *,
    max_prompt: int,
    split: str = "train",
    both_orders: bool = False,
    progress: Progress | None = None,
    rejects: Rejects | None = None,
) -> PromptSet:
    """The labelled prompts of a prepared directory, of files, or of a data set on the hub.

    Whatever `sources.open_source` reads will do, pairs and rendered prompts alike (the original
    takes data sets of one owner only; spec §8.1, 9).

    Args:
      prompt: renders pairs; not asked where prompts are rendered.
      max_prompt: tokens; longer prompts are dropped, as published.
      split: of a prepared directory or a data set; files have none.
      both_orders: ask about each pair a second time, its responses exchanged.
      rejects: told of every record that is dropped, and why.

    Raises UserError where the source cannot be read, where the template takes no such messages, or
    where nothing is left.
    """
    inside = Path(path) / TRACES
    source = open_source(str(inside) if inside.is_file() else path, split=split)
    reader = _Reader(source, prompt, rejects, both_orders)
    tokens, lengths, ids, labels = [np.empty(0, np.int32)], [], [], []
    shortest: int | None = None
    for asked in batched(reader.read(tokenizer), AT_A_TIME):
        encoded = iter(
            tokenizer(
                [text for _, _, texts in asked for text in texts],
                add_special_tokens=False,
                return_attention_mask=False,
            )["input_ids"]
        )
        for row, examples, _ in asked:
            of_orders = list(islice(encoded, len(examples)))
            length = max(map(len, of_orders))
            shortest = length if shortest is None else min(length, shortest)
            if length > max_prompt:
                detail = f"the prompt has {length} tokens, more than max_prompt={max_prompt}"
                reader.drop(row, "too_long", detail)
                continue
            for example, ids_of_prompt in zip(examples, of_orders, strict=True):
                tokens.append(np.array(ids_of_prompt, np.int32))
                lengths.append(len(ids_of_prompt))
                ids.append(example.id)
                labels.append(SIDES.index(cast(Side, example.label)))
        if progress is not None:
            progress(reader.records)
    if not ids:
        raise UserError(f"{path}: {_nothing_left(reader, shortest, max_prompt)}")
    return PromptSet(
        tokens=np.concatenate(tokens),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        labels=np.array(labels, np.int8),
        ids=tuple(ids),
        counts=PromptCounts(
            records=reader.records,
            kept=len(ids),
            dropped=dict(reader.dropped),
            lengths=Lengths.of(np.array(lengths)),
        ),
        orders=2 if both_orders else 1,
    )


class _Reader:
    """Reads a source once; what cannot be used is counted."""

    def __init__(
        self,
        source: RowSource,
        prompt: JudgePrompt | None,
        rejects: Rejects | None,
        both_orders: bool,
    ) -> None:
        self.records, self._both_orders = 0, both_orders
        self.dropped: Counter[Dropped] = Counter()
        self._source, self._prompt, self._rejects = source, prompt, rejects
        self._ids: set[str] = set()

    def drop(self, row: Row, why: Dropped, detail: str) -> None:
        self.dropped[why] += 1
        if self._rejects is not None:
            self._rejects(row.number, f"{row.place}, {detail}", row_text(row.raw))

    def read(
        self, tokenizer: "PreTrainedTokenizerBase"
    ) -> Iterator[tuple[Row, list[Example], list[str]]]:
        """Each record that has a label and that the template takes, with what the judge would read:
        once, or in both orders.

        Raises UserError where the template refuses the first.
        """
        first = True
        for row in self._source.rows():
            self.records += 1
            example = self._example(row)
            if example is None:
                continue
            examples = [example, self._swapped(example)] if self._both_orders else [example]
            if first:
                check_template(tokenizer, self._messages(example))
                first = False
            try:
                texts = [
                    chat_text(tokenizer, self._messages(each), add_generation_prompt=True)
                    for each in examples
                ]
            except TemplateError as error:
                self.drop(row, "template_refuses", f"the chat template refuses it: {error}")
                continue
            yield row, examples, texts

    def _swapped(self, example: Example) -> Example:
        if example.preference is None:
            raise UserError(
                f"{self._source.label}: prompts that are rendered already cannot be shown in both "
                "orders; leave out --data.both_orders, or give pairs"
            )
        pair = example.preference.swapped()
        return replace(example, id=f"{example.id}, swapped", preference=pair, label=pair.label)

    def _example(self, row: Row) -> Example | None:
        try:
            record = decode_row(row.raw)
            if self._source.filtered_by(record) is not None:
                self.dropped["filtered"] += 1
                return None
            # One of a prepared directory stays as it is, with the id that it has there.
            example = record if isinstance(record, Example) else None
            example = example or self._source.example(record, row.default_id)
            if example.label is None:
                raise RecordError("label", "is missing, and the trace gives no verdict either")
            if example.id in self._ids:
                raise RecordError("id", f"{example.id!r} is given twice; make ids unique")
        except RecordError as error:
            unlabelled = error.field in ("label", "winner")
            self.drop(row, "no_label" if unlabelled else "unreadable", str(error))
            return None
        self._ids.add(example.id)
        return example

    def _messages(self, example: Example) -> list[dict[str, str]]:
        if example.preference is not None and self._prompt is None:
            raise UserError(
                f"{self._source.label}: holds pairs, and no prompt says how a judge is asked about "
                "them; name one with --data.prompt"
            )
        return example.messages(cast(JudgePrompt, self._prompt))


def _nothing_left(reader: _Reader, shortest: int | None, max_prompt: int) -> str:
    why = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in reader.dropped.items())
    if shortest is None:
        return f"none of its {reader.records} records can be used ({why}); give labelled pairs"
    others = f" ({why})" if len(reader.dropped) > 1 else ""
    return (
        f"no prompt of the {reader.records} leaves room{others}: the shortest has {shortest} "
        f"tokens, --data.max_prompt={max_prompt}; raise it"
    )


class PromptStream:
    """Prompts without end: each one once an epoch, in another order each epoch.

    The order is a function of the seed, the epoch and the number of prompts. The two orders of a
    pair follow each other.
    """

    def __init__(self, prompts: PromptSet, seed: int = PUBLISHED_SEED) -> None:
        self.prompts, self.seed = prompts, seed
        self.position = 0
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, position: int) -> Prompt:
        """The prompt at a position of the stream, wherever the stream stands."""
        epoch, place = divmod(position, len(self.prompts))
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, epoch))
            pairs = len(self.prompts) // self.prompts.orders
            self._epoch, self._order = epoch, rng.permutation(pairs)
        pair, order = divmod(place, self.prompts.orders)
        return self.prompts[int(self._order[pair]) * self.prompts.orders + order]

    def draw(self, n: int) -> list[tuple[int, Prompt]]:
        """The next n, each with its position."""
        first, self.position = self.position, self.position + n
        return [(position, self[position]) for position in range(first, self.position)]

    def get_state(self) -> dict[str, Any]:
        """Where the stream stands, as plain JSON."""
        return {"position": self.position, "prompts": self.prompts.fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was. Raises UserError where the prompts are not the same now."""
        if state["prompts"] != self.prompts.fingerprint:
            raise UserError(
                "the prompts, the tokenizer or --data.max_prompt have changed since the checkpoint "
                "was written; go back to what they were, or start in another workdir"
            )
        self.position = state["position"]
