"""Each published layout becomes an Example, and what is none is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.data.converters import example_from_record, transcript
from rmr1_jax.data.example import Example
from rmr1_jax.data.row_files import decode_row, file_rows
from rmr1_jax.judging import Message, RecordError

HUMAN, GPT = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "R"}
RENDERED = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "A or B?"}]


def read(record: object) -> Example:
    return example_from_record(record, source="set", default_id="7")


def winner_and_loser(example: Example) -> tuple[str, str]:
    assert example.preference is not None
    responses = example.preference.response_a, example.preference.response_b
    return responses if example.label == "A" else (responses[1], responses[0])


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Q", "chosen": "good", "rejected": "bad"},
        {"question": "Q", "chosen": "good", "rejected": "bad"},
        {"instruction": "Q", "input": None, "chosen": "good", "rejected": "bad"},
        {
            "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "good"}],
            "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "bad"}],
        },
        {"question": "Q", "response_a": "bad", "response_b": "good", "label": "B"},
        {"prompt": "Q", "response_a": "good", "response_b": "bad", "label": "A"},
        {"prompt": [{"role": "user", "content": "Q"}]}
        | {"response_a": "good", "response_b": "bad", "label": "A"},
        {"question": "Q", "response_A": "bad", "response_B": "good", "label": "B>A"},
        {"input": "Q", "accepted": "good", "rejected": "bad", "ID": 3},
        {"chosen": "\n\nHuman: Q\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: bad"},
        {"conversations": [HUMAN]}
        | {"chosen": GPT | {"value": "good"}, "rejected": [GPT | {"value": "bad"}]},
    ],
    ids=lambda record: " ".join(record),
)
def test_a_pair_of_any_layout(record: dict[str, Any]) -> None:
    example = read(record)
    assert example.preference is not None
    assert example.preference.context == (Message("user", "Q"),)
    assert example.preference.context_b is None
    assert winner_and_loser(example) == ("good", "bad")
    assert (example.id, example.source, example.preference.id) == ("set/7", "set", "set/7")
    assert example.label == example.preference.label


def test_math_step_dpo_answers_begin_with_the_shared_steps() -> None:
    record = {"prompt": "1+1?", "initial_reason_steps": "Step 1: add.\n", "dataset": "x"}
    example = read(record | {"full_chosen": "So 2.", "full_rejected": "So 3."})
    assert winner_and_loser(example) == ("Step 1: add.\nSo 2.", "Step 1: add.\nSo 3.")
    with pytest.raises(RecordError, match="initial_reason_steps: must be a text"):
        read(record | {"full_chosen": "So 2.", "initial_reason_steps": ["Step 1"]})


def test_a_released_prompt_is_kept_as_it_is() -> None:
    example = read({"context_messages": RENDERED, "winner": "model_b"})
    assert example == Example(
        "set/7",
        "set",
        "B",
        prompt=(Message("system", "Judge."), Message("user", "A or B?")),
    )


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"ground_truth": "model_b"}, "B"),
        ({"ground_truth": "<answer>[[A]]</answer>"}, "A"),
        ({"ground_truth": None}, "A"),
        ({"ground_truth": "unclear"}, "A"),
        ({"winner": "I cannot say."}, None),
    ],
)
def test_a_released_trace_is_labelled_by_its_ground_truth_or_its_verdict(
    fields: dict[str, Any], label: str | None
) -> None:
    trace = "<eval>A is right.</eval><answer>[[A]]</answer>"
    example = read({"context_messages": RENDERED, "winner": trace} | fields)
    assert example.label == label
    assert example.trace == fields.get("winner", trace)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "record: is no object"),
        ({"text": "a", "score": 1}, "no known layout; its fields are text, score"),
        ({"prompt": "Q", "rejected": "bad"}, "its fields are prompt, rejected"),
        ({"prompt": "Q", "chosen": "good"}, "rejected: is missing"),
        ({"question": "Q", "response_a": "x", "response_b": "y"}, "label: is missing; say which"),
        ({"question": "Q", "response_a": "x", "response_b": "y", "label": "C"}, "label: is 'C'"),
        ({"question": "Q", "response_A": "x", "response_B": "y", "label": "A=B"}, "is 'A=B'"),
        ({"context_messages": []}, "context_messages: is no list"),
        ({"context_messages": RENDERED}, "winner: is missing"),
        ({"context_messages": [{"role": "bot", "content": ""}], "winner": "A"}, "role: is 'bot'"),
        ({"full_chosen": "x", "full_rejected": "y"}, "prompt: is missing"),
        (
            {"chosen": "\n\nHuman: Q\n\nAssistant:", "rejected": "\n\nHuman: Q\n\nAssistant: x"},
            "chosen: is empty",
        ),
    ],
)
def test_what_is_no_pair_is_named(record: object, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        read(record)


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"])).filter(
            lambda text: "Human" not in text and "Assistant" not in text
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_transcript_gives_its_turns_back(turns: list[str]) -> None:
    text = "".join(
        f"\n\n{'Assistant' if number % 2 else 'Human'}: {turn}" for number, turn in enumerate(turns)
    )
    assert [turn["content"] for turn in transcript(text)] == [turn.strip() for turn in turns]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
FIELDS = ["prompt", "chosen", "rejected", "question", "response_a", "response_b", "response_A"]
FIELDS += ["label", "winner", "ground_truth", "context_messages", "conversations", "id", "input"]
FIELDS += ["accepted", "full_chosen", "full_rejected", "initial_reason_steps", "conversation"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=7))
def test_any_json_is_an_example_or_a_named_error(record: dict[str, Any]) -> None:
    try:
        example = read(record)
    except RecordError:
        return
    assert example.label in ("A", "B") or example.trace


@pytest.mark.parametrize(
    ("name", "kept", "rejected"),
    [
        ("dpo_en_demo.json", 300, 0),
        ("hh-rlhf-harmless-base-test.jsonl.gz", 2303, 9),
        ("judgebench-claude.jsonl", 270, 0),
    ],
)
def test_published_files_are_read(shared_data: Path, name: str, kept: int, rejected: int) -> None:
    counts = {True: 0, False: 0}
    for _, raw in file_rows(shared_data / "pref" / name):
        try:
            counts[read(decode_row(raw)).label in ("A", "B")] += 1
        except RecordError as error:
            counts[False] += 1
            assert "is empty" in str(error) or "role assistant" in str(error)
    assert counts == {True: kept, False: rejected}


def test_characters_that_no_file_takes_are_replaced() -> None:
    record = {"context_messages": [{"role": "user", "content": "a\ud800"}], "winner": "\x00[[A]]"}
    example = read(json.loads(json.dumps(record)))
    assert (example.prompt[0].content, example.trace) == ("a\ufffd", "\ufffd[[A]]")
