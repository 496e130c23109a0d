"""The toy task: what it asks, that nothing but the answer tells right from wrong."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.judging import Preference, load_prompt
from rmr1_jax.models.checkpoint import load_tokenizer
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.toy_task import (
    TOY_PROMPT,
    scripted_trace,
    tiny_model_config,
    toy_preferences,
    toy_tokenizer,
    write_tokenizer,
)
from rmr1_jax.toy_task.problems import (
    KINDS,
    WORDS,
    Arithmetic,
    Counting,
    Format,
    Sorting,
    read_problem,
)

SAMPLE = list(toy_preferences(4000, seed=7))


def question(preference: Preference) -> str:
    return preference.context[0].content


def share(found: Callable[[Preference], bool], preferences: list[Preference]) -> float:
    return sum(map(found, preferences)) / len(preferences)


def test_the_same_seed_gives_the_same_preferences_whatever_the_count() -> None:
    assert list(toy_preferences(100, seed=7)) == SAMPLE[:100]
    assert next(toy_preferences(1, seed=8)) != SAMPLE[0]


def test_ids_and_problems_come_once() -> None:
    assert len({preference.id for preference in SAMPLE}) == len(SAMPLE)
    assert len({read_problem(question(preference)) for preference in SAMPLE}) == len(SAMPLE)


def test_fifty_thousand_different_problems_can_be_asked() -> None:
    questions = {question(preference) for preference in toy_preferences(50_000, seed=0)}
    assert len(questions) == 50_000


def test_every_kind_is_asked_a_quarter_of_the_time() -> None:
    kinds = Counter(type(read_problem(question(preference))) for preference in SAMPLE)
    assert kinds.keys() == set(KINDS)
    for count in kinds.values():
        assert count == pytest.approx(len(SAMPLE) / len(KINDS), rel=0.2)


@pytest.mark.parametrize(
    ("asked", "problem", "right", "wrong"),
    [
        ("What is 147+252?", Arithmetic(147, "+", 252), "It is 399", "It is 389"),
        ("How much is 987-325?", Arithmetic(987, "-", 325), "I get 662", "I get 672"),
        ("Can you sort dbea?", Sorting("dbea"), "Answer: abde", "abed"),
        ("How many vowels are in bagie?", Counting("bagie"), "The answer is 3", "Answer: 2"),
        ("Can you count the odd digits in 3852?", Counting("3852"), "I get 2", "I get 0"),
        (
            "Write about cat and moon in exactly three words.",
            Format(("cat", "moon"), "in exactly three words"),
            "cat fish moon.",
            "moon cat.",
        ),
        (
            "Say something on cat and moon in capitals.",
            Format(("cat", "moon"), "in capitals"),
            "MOON DOOR CAT.",
            "moon door cat.",
        ),
        (
            "Write about cat and moon with ? at the end.",
            Format(("cat", "moon"), "with ? at the end"),
            "cat tree moon?",
            "cat tree moon!",
        ),
    ],
)
def test_a_question_can_be_read_and_its_responses_checked(
    asked: str, problem: object, right: str, wrong: str
) -> None:
    found = read_problem(asked)
    assert found == problem
    assert found is not None
    assert found.is_right(right)
    assert not found.is_right(wrong)


@pytest.mark.parametrize(
    "asked", ["What is the capital of France?", "", "What is 1+1?", "What is 167+252?"]
)
def test_other_questions_are_none_of_its_own(asked: str) -> None:
    assert read_problem(asked) is None


def test_the_label_names_the_only_right_response() -> None:
    for preference in SAMPLE:
        problem = read_problem(question(preference))
        assert problem is not None
        right = {"A": problem.is_right(preference.response_a)}
        right["B"] = problem.is_right(preference.response_b)
        assert [side for side, is_right in right.items() if is_right] == [preference.label]


def chosen(preference: Preference) -> str:
    return preference.response_a if preference.label == "A" else preference.response_b


def rejected(preference: Preference) -> str:
    return preference.response_b if preference.label == "A" else preference.response_a


def test_no_shortcut_tells_which_response_is_right() -> None:
    """Each rule that looks at the surface only is right about half of the time it applies."""
    rules: dict[str, Callable[[str], Any]] = {
        "longer": len,
        "more words": lambda text: len(text.split()),
        "later wording": lambda text: " ".join(text.split()[:-1]) if text[-1] not in ".!?" else "",
        "larger answer": lambda text: text.split()[-1],
        "more capitals": lambda text: sum(map(str.isupper, text)),
        "last character": lambda text: text[-1] if text[-1] in ".!?" else "",
    }
    assert share(lambda p: p.label == "A", SAMPLE) == pytest.approx(0.5, abs=0.03)
    for name, rule in rules.items():
        for kind in KINDS:
            # A sorted answer can be told from an unsorted one: that is the question itself.
            if kind is Sorting and name == "larger answer":
                continue
            asked = [p for p in SAMPLE if isinstance(read_problem(question(p)), kind)]
            pairs = [(rule(chosen(p)), rule(rejected(p))) for p in asked]
            differ = [(right, wrong) for right, wrong in pairs if right != wrong]
            if len(differ) > 50:
                better = sum(right > wrong for right, wrong in differ) / len(differ)
                assert better == pytest.approx(0.5, abs=0.07), (name, kind)


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


def rendered(tokenizer, preference: Preference) -> str:
    return tokenizer.apply_chat_template(
        TOY_PROMPT.messages(preference), tokenize=False, add_generation_prompt=True
    )


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_prompts_and_traces_survive_the_tokenizer(tokenizer) -> None:
    for preference in SAMPLE[:500]:
        traces = [scripted_trace(preference, right=right, seed=0) for right in (True, False)]
        for text in (rendered(tokenizer, preference), *traces):
            assert tokenizer.decode(ids(tokenizer, text)) == text


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = ANY_TEXT
    assert tokenizer.decode(ids(tokenizer, text)) == text


ANY_TEXT = toy_tokenizer()


def test_sequences_are_short(tokenizer) -> None:
    for preference in SAMPLE[:1000]:
        assert len(ids(tokenizer, rendered(tokenizer, preference))) <= 48
        assert len(ids(tokenizer, scripted_trace(preference, right=True, seed=0))) <= 64


def test_the_words_of_the_task_are_one_token_each(tokenizer) -> None:
    for word in WORDS:
        assert len(ids(tokenizer, f"{word} {word} {word.upper()} {word.upper()}")) == 4


def test_the_verdict_is_a_token_by_itself(tokenizer) -> None:
    trace = scripted_trace(SAMPLE[0], right=True, seed=0)
    pieces = [tokenizer.decode([id]) for id in ids(tokenizer, trace)]
    assert pieces[-2:] == [SAMPLE[0].label, "]]</answer>"]


def test_a_written_tokenizer_reads_back(tokenizer, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "one")
    write_tokenizer(tmp_path / "two")
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    config = tiny_model_config(len(tokenizer))
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    back, stop_ids = load_tokenizer(tmp_path / "one")
    assert stop_ids == (tokenizer.eos_token_id,)
    for preference in islice(SAMPLE, 20):
        text = rendered(tokenizer, preference)
        assert rendered(back, preference) == text
        assert ids(back, text) == ids(tokenizer, text)


def test_the_tiny_model_is_one_of_ours_and_stops_at_the_end_token(tokenizer) -> None:
    config = ModelConfig.from_hf(tiny_model_config(len(tokenizer)), source="self-made")
    assert config.vocab_size == len(tokenizer)
    assert config.eos_token_ids == (tokenizer.eos_token_id,)


def test_the_prompt_of_the_task_can_be_kept_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(TOY_PROMPT.system or "")
    assert load_prompt(str(tmp_path / "prompt.txt")) == TOY_PROMPT


def test_labels_that_alternate_are_not_given_away_by_the_kind_of_question() -> None:
    chosen_at_a: dict[str, list[bool]] = {}
    for number, pair in enumerate(toy_preferences(2000, 5)):
        words = pair.context[0].content.split()
        chosen_at_a.setdefault(" ".join(words[:2]), []).append(number % 2 == 0)
    for kind, sides in chosen_at_a.items():
        if len(sides) >= 100:
            assert 0.35 < sum(sides) / len(sides) < 0.65, kind
