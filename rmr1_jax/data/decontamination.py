"""Which examples ask what a benchmark asks."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rmr1_jax.data.converters import (
    QUESTIONS,
    example_from_record,
    is_transcript,
    shown_fields,
    transcript,
)
from rmr1_jax.data.example import Example
from rmr1_jax.data.ngrams import hash_runs, hash_text, words
from rmr1_jax.data.row_files import data_files, decode_row, file_rows
from rmr1_jax.errors import UserError
from rmr1_jax.judging import RecordError

Overlap = Literal["question", "words"]
Conversation = Sequence[str]

_RENDERED = re.compile(r"\[Client Question\]\n(.*?)\n\n\[The Start of Chatbot A's Response\]", re.S)


class Benchmarks:
    """The questions of benchmark files, as hashes: 8 bytes for each word of them.

    Args:
      names: files or directories of RewardBench, RM-Bench, RMB, or any preferences.
      ngram: how many words in a row, shared with a benchmark's question, are too many.

    Raises UserError for a record that holds no question: it would not be kept out.
    """

    def __init__(self, names: Iterable[str], ngram: int) -> None:
        self.ngram, self.records = ngram, 0
        exact: set[int] = set()
        runs: list[Any] = []
        for file in (file for name in names for file in data_files(name)):
            for conversation in _conversations_of(file):
                self.records += 1
                exact.add(_exact(conversation))
                runs += [found for text in conversation if len(found := self._runs(text))]
        self._exact = exact
        self._sorted = np.unique(np.concatenate(runs)) if runs else np.zeros(0, np.uint64)

    def overlap(self, example: Example) -> Overlap | None:
        """ "question": the same conversation, or the same first question, but for case and spaces.
        "words": `ngram` words in a row that a benchmark has too. Responses are not looked at."""
        for conversation in _asked(example):
            if {_exact(conversation), _exact(conversation[:1])} & self._exact:
                return "question"
        for conversation in _asked(example):
            if any(self._shares_run(text) for text in conversation):
                return "words"
        return None

    def _runs(self, text: str) -> Any:
        return hash_runs(words(text), self.ngram)

    def _shares_run(self, text: str) -> bool:
        if not len(self._sorted):
            return False
        runs = self._runs(text)
        places = np.minimum(np.searchsorted(self._sorted, runs), len(self._sorted) - 1)
        return bool(np.any(self._sorted[places] == runs))


def _exact(conversation: Conversation) -> int:
    return hash_text("\n".join(" ".join(text.casefold().split()) for text in conversation))


def _asked(example: Example) -> list[Conversation]:
    """The conversations that an example asks about, as texts. Of a rendered prompt, the question
    where it stands alone, else the whole user message."""
    preference = example.preference
    if preference is not None:
        contexts = [preference.context, *([preference.context_b] if preference.context_b else [])]
        return [
            [message.content for message in context if message.role != "system"]
            for context in contexts
        ]
    said = [message.content for message in example.prompt if message.role == "user"]
    return [[found[1]] if (found := _RENDERED.search(text)) else [text] for text in said]


def _conversations_of(file: str) -> Iterator[Conversation]:
    for number, raw in file_rows(file):
        try:
            yield from _conversations(decode_row(raw))
        except RecordError as error:
            raise UserError(
                f"--against: {file}, record {number}: {error}. Mend it, or leave the file out"
            ) from error


def _conversations(record: object) -> list[Conversation]:
    if not isinstance(record, Mapping):
        raise RecordError("record", "is no object with named fields")
    for name in ("conversation_input", "conversation", *QUESTIONS):
        if conversation := _texts(record.get(name)):
            return [conversation]
    if is_transcript(record):
        return [[turn["content"] for turn in transcript(record["chosen"])[:-1]]]
    try:
        return _asked(example_from_record({"label": "A", **record}, source="", default_id="0"))
    except RecordError as error:
        raise RecordError(
            "question", f"is not found; the fields are {shown_fields(record)}"
        ) from error


def _texts(value: object) -> Conversation:
    if isinstance(value, str):
        return [value] if value.strip() else []
    if not isinstance(value, list):
        return []
    return [
        item["content"]
        for item in value
        if isinstance(item, Mapping)
        and isinstance(item.get("content"), str)
        and item.get("role") != "system"
    ]
