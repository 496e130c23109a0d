"""Judgements are read from sampled tokens: the verdict, and the confidence of the model in it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.sampling.judgement import Reader
from rmr1_jax.sampling.scheduler import Sample


class Characters:
    """A tokenizer whose tokens are bytes, or pieces it was given; merges only what it must."""

    def __init__(self, *pieces: str):
        self.pieces = [bytes([n]) for n in range(256)] + [piece.encode() for piece in pieces]

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        rest, ids = text.encode(), []
        while rest:
            length, number = max(
                (len(p), n) for n, p in enumerate(self.pieces) if rest.startswith(p)
            )
            ids.append(number)
            rest = rest[length:]
        return {"input_ids": ids}

    def decode(self, tokens: Any, **_: Any) -> str:
        return b"".join(self.pieces[n] for n in tokens).decode(errors="replace")


def sample(tokens: list[int], logit_diffs: dict[int, float] | None = None) -> Sample:
    """Every step was sure of B, but for those given."""
    values = np.full(len(tokens), -50.0, np.float32)
    for at, margin in (logit_diffs or {}).items():
        values[at] = margin
    zeros = np.zeros(len(tokens), np.float32)
    return Sample(np.array(tokens, np.int32), zeros, zeros, values, "stop")


@given(before=st.text(max_size=30), after=st.text("ABC[] é", max_size=9), margin=st.floats(-5, 5))
def test_confidence_is_that_of_the_step_that_wrote_the_verdict(
    before: str, after: str, margin: float
) -> None:
    reader = Reader(Characters("[[", "]]", "answer"))
    assert reader.compare_ids == (65, 66)
    start = reader.encode(before + "<answer>[[")
    tokens = [*start, 65, *reader.encode("]]" + after.replace("[[", ""))]
    judgement = reader.judgement(sample(tokens, {len(start): margin}), 1)
    if judgement.verdict != "A":  # the text before has said B
        assert judgement.problem == "both" and judgement.confidence is None
    else:
        assert judgement.confidence == pytest.approx(1 / (1 + np.exp(-margin)), abs=1e-6)


def test_of_a_verdict_that_is_repeated_the_last_one_counts() -> None:
    reader = Reader(Characters())
    text = "B or A? [[A]]. Thus <answer>[[A]]</answer>. A!"
    logit_diffs = {text.index("[[A"): 9.0, text.index("[[A") + 2: 2.0, text.rindex("[[A") + 2: 0.0}
    judgement = reader.judgement(sample(reader.encode(text), logit_diffs), 1)
    assert judgement.verdict == "A" and judgement.confidence == 0.5


def test_a_verdict_in_other_tokens_than_expected_has_no_confidence() -> None:
    reader = Reader(Characters("[[A]]", "[[B]]"))
    assert reader.judgement(sample(reader.encode("[[B]]")), 1).confidence == pytest.approx(0)
    letters = sample([91, 91, 66, 93, 93])
    assert reader.judgement(letters, 1).verdict == "B"
    assert reader.judgement(letters, 1).confidence is None


def test_verdicts_that_are_not_one_token_apart_have_no_confidence() -> None:
    reader = Reader(Characters("[[A"))
    assert reader.compare_ids is None
    judgement = reader.judgement(sample(reader.encode("<answer>[[A]]</answer>")), 1)
    assert judgement.verdict == "A" and judgement.confidence is None


def test_no_verdict_no_confidence() -> None:
    reader = Reader(Characters())
    for text in ("", "A", "[[A]] and [[B]]"):
        assert reader.judgement(sample(reader.encode(text)), 1).confidence is None
