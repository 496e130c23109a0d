"""What a judge reads: the published texts, nothing that gives the label away."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.errors import UserError
from rmr1_jax.judging import (
    JudgePrompt,
    Message,
    Preference,
    chain_of_rubrics,
    load_prompt,
    preference_from_record,
    prompts,
    reasoning,
)
from rmr1_jax.judging.preference import chosen_side

QUESTION = (Message("user", "Q"),)
CHAT = (
    Message("system", "S"),
    Message("user", "Q"),
    Message("assistant", "R"),
    Message("user", "P"),
)
STYLES = pytest.mark.parametrize("prompt", [chain_of_rubrics(), reasoning()], ids=lambda p: p.style)


def user_message(prompt: JudgePrompt, preference: Preference) -> str:
    return prompt.messages(preference)[-1]["content"]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def test_user_templates_are_the_published_ones() -> None:
    assert digest(prompts.PAIR_SINGLE_TURN).startswith("5fa3baf9813bdf0e")
    assert digest(prompts.PAIR_MULTI_TURN).startswith("8cb7158fc42faa0b")


def test_built_in_system_message_is_the_specified_text(shared_data: Path) -> None:
    specification = shared_data.parent / "spec" / "cor-prompt.md"
    text = specification.read_bytes().decode("utf-8").split("\n---\n")[1]
    assert chain_of_rubrics().system == text
    assert chain_of_rubrics().sha256 == digest(text)


def test_instruct_models_get_a_system_message_and_the_pair() -> None:
    prompt = chain_of_rubrics()
    messages = prompt.messages(Preference("1", QUESTION, "RA", "RB"))
    assert messages == [
        {"role": "system", "content": prompt.system},
        {
            "role": "user",
            "content": "[Client Question]\nQ\n\n"
            "[The Start of Chatbot A's Response]\nRA\n[The End of Chatbot A's Response]\n\n"
            "[The Start of Chatbot B's Response]\nRB\n[The End of Chatbot B's Response]",
        },
    ]


def test_reasoning_models_get_one_user_message_that_ends_with_the_demand() -> None:
    (message,) = reasoning().messages(Preference("1", QUESTION, "RA", "RB"))
    assert message["role"] == "user"
    assert (
        user_message(chain_of_rubrics(), Preference("1", QUESTION, "RA", "RB"))
        in (message["content"])
    )
    demand = message["content"].rsplit("\n", 1)[-1]
    assert "<answer>[[A]]</answer>" in demand
    assert "<answer>[[B]]</answer>" in demand
    assert "rubric" not in message["content"]
    assert "<type>" not in message["content"]


@STYLES
def test_a_longer_context_is_shown_as_two_whole_conversations(prompt: JudgePrompt) -> None:
    pair = (
        "[The Start of the Conversation between Chatbot A and the Client]\n"
        "System: S\nUser: Q\nChatbot A: R\nUser: P\nChatbot A: RA\n"
        "[The End of the Conversation between Chatbot A and the Client]\n\n"
        "[The Start of the Conversation between Chatbot B and the Client]\n"
        "System: S\nUser: Q\nChatbot B: R\nUser: P\nChatbot B: RB\n"
        "[The End of the Conversation between Chatbot B and the Client]"
    )
    assert pair in user_message(prompt, Preference("1", CHAT, "RA", "RB"))


@STYLES
def test_two_questions_are_never_shown_as_one(prompt: JudgePrompt) -> None:
    preference = Preference("1", QUESTION, "RA", "RB", context_b=(Message("user", "other"),))
    text = user_message(prompt, preference)
    assert "User: Q\nChatbot A: RA" in text
    assert "User: other\nChatbot B: RB" in text


@STYLES
@pytest.mark.parametrize("context", [QUESTION, CHAT], ids=["single", "multi"])
@given(texts=st.tuples(*[st.text("{}0!:[]a\n", min_size=1)] * 3))
def test_braces_in_contents_stay_as_they_are(
    prompt: JudgePrompt, context: tuple[Message, ...], texts: tuple[str, str, str]
) -> None:
    preference = Preference("1", (*context[:-1], Message("user", texts[0])), *texts[1:])
    text = user_message(prompt, preference)
    plain = Preference("1", (*context[:-1], Message("user", "\1")), "\2", "\3")
    expected = user_message(prompt, plain)
    for mark, inserted in zip("\1\2\3", texts, strict=True):
        expected = expected.replace(mark, inserted)
    assert text == expected


@STYLES
@pytest.mark.parametrize("turns", [1, 3])
def test_no_label_can_be_read_off_a_prompt(prompt: JudgePrompt, turns: int) -> None:
    """Chosen at A and chosen at B differ by the exchange of two texts and by nothing else."""
    messages = [{"role": "user", "content": "Q"}]
    if turns == 3:
        messages += [{"role": "assistant", "content": "R"}, {"role": "user", "content": "P"}]
    record = {"prompt": messages, "chosen": "\1", "rejected": "\2"}
    by_side = {
        side: user_message(
            prompt,
            preference_from_record(
                {**record, "id": next(i for i in range(64) if chosen_side(str(i)) == side)},
                default_id="",
            ),
        )
        for side in "AB"
    }
    assert by_side["B"].translate({1: "\2", 2: "\1"}) == by_side["A"]
    for text in by_side.values():
        assert "Chabot" not in text
        assert text.count("Chatbot A") == text.count("Chatbot B")


def test_a_text_file_is_the_system_message_byte_for_byte(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("\r\n Judge \u00e9.\n\n".encode())
    prompt = load_prompt(str(file))
    assert prompt == JudgePrompt("chain_of_rubrics", "\r\n Judge \u00e9.\n\n")
    assert prompt.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_built_in_prompts_load_by_name() -> None:
    assert load_prompt("chain_of_rubrics") == chain_of_rubrics()
    assert load_prompt("reasoning") == reasoning()
    assert reasoning().sha256 != chain_of_rubrics().sha256


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_the_system_message_of_a_data_set_is_taken(tmp_path: Path, suffix: str) -> None:
    record = {
        "context_messages": [
            {"content": "Judge.\n", "role": "system"},
            {"content": "pair", "role": "user"},
        ],
        "winner": "model_a",
    }
    file = tmp_path / f"train{suffix}"
    text = json.dumps(record) + "\nnot read" if suffix == ".jsonl" else json.dumps([record])
    file.write_text(text, encoding="utf-8")
    assert load_prompt(str(file)).system == "Judge.\n"


LONE_USER = json.dumps({"context_messages": [{"role": "user", "content": "pair"}]})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompt.txt", b"", "is empty"),
        ("prompt.txt", b"\xff", "not UTF-8"),
        ("data.json", b"{", "not JSON"),
        ("data.jsonl", b"[" * 100_000, "not JSON"),
        ("data.json", b"[]", "context_messages"),
        ("data.json", b'{"context_messages": [1]}', "context_messages"),
        ("data.json", b'{"context_messages": []}', "no system text"),
        ("data.jsonl", LONE_USER.encode(), "lone user message"),
    ],
)
def test_a_file_that_holds_no_prompt_says_why(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_prompt(str(file))
    assert name in str(caught.value)


def test_a_missing_prompt_file_and_a_directory_say_what_to_give(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(UserError, match="chain_of_rubrics, reasoning, or the path"):
            load_prompt(str(path))
