"""Records become preferences, or say which field is wrong."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.judging import Message, Preference, RecordError, preference_from_record
from rmr1_jax.judging.preference import chosen_side

USER = {"role": "user", "content": "Is 91 prime?"}
NO = {"role": "assistant", "content": "No, 7 times 13."}
YES = {"role": "assistant", "content": "Yes."}
NATIVE = {"question": "Is 91 prime?", "response_a": "No, 7 times 13.", "response_b": "Yes."}

texts = st.text(min_size=1)
contexts = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts), min_size=1
).map(tuple)
preferences = st.builds(
    Preference,
    id=texts,
    context=contexts,
    response_a=texts,
    response_b=texts,
    label=st.sampled_from(["A", "B", None]),
    context_b=st.none() | contexts,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
fields = st.sampled_from(
    [
        *["id", "question", "conversation", "response_a", "response_b", "label"],
        *["prompt", "chosen", "rejected"],
    ]
)


def read(record: object, default_id: str = "1") -> Preference:
    return preference_from_record(record, default_id=default_id)


def chosen_and_rejected(preference: Preference) -> tuple[str, str]:
    """The responses with the winner first, wherever it stands."""
    pair = (preference.response_a, preference.response_b)
    return pair if preference.label == "A" else (pair[1], pair[0])


def ids_by_side() -> tuple[str, str]:
    """An id that puts the chosen response at A, and one that puts it at B."""
    ids = [str(number) for number in range(64)]
    return (
        next(id for id in ids if chosen_side(id) == "A"),
        next(id for id in ids if chosen_side(id) == "B"),
    )


@given(preferences)
def test_swapping_twice_gives_the_same_preference(preference: Preference) -> None:
    assert preference.swapped().swapped() == preference


def test_swapping_exchanges_responses_conversations_and_label() -> None:
    one, other = (Message("user", "one"),), (Message("user", "other"),)
    swapped = Preference("1", one, "a", "b", "A", context_b=other).swapped()
    assert swapped == Preference("1", other, "b", "a", "B", context_b=one)


def test_question_with_two_responses() -> None:
    expected = Preference("1", (Message("user", "Is 91 prime?"),), "No, 7 times 13.", "Yes.", None)
    assert read(NATIVE) == expected
    assert read({**NATIVE, "label": None}) == expected
    assert read({**NATIVE, "label": "B", "source": "x"}).label == "B"


def test_null_is_absent_as_in_the_columns_of_a_table() -> None:
    unused = dict.fromkeys(["id", "conversation", "label", "prompt", "chosen", "rejected"])
    assert read({**NATIVE, **unused}) == read(NATIVE)
    pair = {"prompt": "q", "chosen": "c", "rejected": "r"}
    assert read({**dict.fromkeys([*NATIVE, "label"]), **pair}) == read(pair)


def test_conversation_with_two_responses() -> None:
    record = {**NATIVE, "conversation": [USER, YES, USER]}
    del record["question"]
    assert [message.role for message in read(record).context] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("given_id", "id"), [("x", "x"), (7, "7"), (None, "default"), ("\ud800", "\ufffd")]
)
def test_id_is_optional_and_may_be_a_number(given_id: object, id: str) -> None:
    assert read({**NATIVE, "id": given_id}, default_id="default").id == id


def test_chosen_goes_where_its_id_says_and_the_label_follows() -> None:
    record = {"prompt": "Is 91 prime?", "chosen": "No.", "rejected": "Yes."}
    at_a, at_b = (read({**record, "id": id}) for id in ids_by_side())
    assert (at_a.response_a, at_a.response_b, at_a.label) == ("No.", "Yes.", "A")
    assert (at_b.response_a, at_b.response_b, at_b.label) == ("Yes.", "No.", "B")


def test_side_of_chosen_is_fixed_and_balanced() -> None:
    # SHA-256 of "1" ends in ...4b, of "2" in ...35, of "4" in ...8a.
    assert [chosen_side(id) for id in ("1", "2", "4")] == ["B", "B", "A"]
    at_a = sum(chosen_side(str(number)) == "A" for number in range(2000))
    assert 900 < at_a < 1100


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Is 91 prime?", "chosen": "No, 7 times 13.", "rejected": "Yes."},
        {"prompt": [USER], "chosen": [NO], "rejected": [YES]},
        {"prompt": [USER], "chosen": "No, 7 times 13.", "rejected": [YES]},
        {"prompt": [USER], "chosen": [USER, NO], "rejected": [USER, YES]},
        {"prompt": "Is 91 prime?", "chosen": [USER, NO], "rejected": [USER, YES]},
        {"chosen": [USER, NO], "rejected": [USER, YES]},
    ],
)
def test_every_hugging_face_layout_gives_the_same_preference(record: dict[str, object]) -> None:
    preference = read(record)
    assert preference.context == (Message("user", "Is 91 prime?"),)
    assert preference.context_b is None
    assert chosen_and_rejected(preference) == ("No, 7 times 13.", "Yes.")


def test_conversations_that_differ_before_the_last_answer_are_both_kept() -> None:
    record = {"chosen": [USER, NO, USER, NO], "rejected": [USER, YES, USER, YES]}
    preference = read({**record, "id": ids_by_side()[0]})
    assert [message.content for message in preference.context][1] == NO["content"]
    assert preference.context_b is not None
    assert [message.content for message in preference.context_b][1] == YES["content"]
    assert read({**record, "id": ids_by_side()[1]}).context == preference.context_b


def test_nul_and_lone_surrogates_are_replaced() -> None:
    record = {**NATIVE, "response_a": "a\x00b\ud83d", "response_b": "\U0001f600"}
    assert read(record).response_a == "a\ufffdb\ufffd"
    assert read(record).response_b == "\U0001f600"


def without(record: Mapping[str, object], field: str) -> dict[str, object]:
    return {name: value for name, value in record.items() if name != field}


PAIR = {"prompt": "q", "chosen": "c", "rejected": "r"}


@pytest.mark.parametrize(
    ("record", "field", "found"),
    [
        ([], "record", "a list of 0"),
        ("text", "record", "'text'"),
        ({}, "response_a", "missing"),
        (without(NATIVE, "question"), "question", "missing"),
        ({**NATIVE, "conversation": [USER]}, "question", "both"),
        ({**NATIVE, "question": " \n"}, "question", "empty"),
        ({**NATIVE, "question": 3}, "question", "3"),
        (without(NATIVE, "response_b"), "response_b", "missing"),
        ({**NATIVE, "response_a": ""}, "response_a", "empty"),
        ({**NATIVE, "response_a": ["x"]}, "response_a", "a list of 1"),
        ({**NATIVE, "label": "a"}, "label", "'a'"),
        ({**NATIVE, "label": 0}, "label", "0"),
        ({**NATIVE, "id": ["x"]}, "id", "a list of 1"),
        ({**NATIVE, "id": ""}, "id", "empty"),
        ({**NATIVE, "id": True}, "id", "True"),
        (without(PAIR, "rejected"), "rejected", "missing"),
        (without(PAIR, "prompt"), "prompt", "missing"),
        ({**PAIR, "chosen": {"content": "c"}}, "chosen", "an object"),
        ({**PAIR, "prompt": []}, "prompt", "a list of 0"),
        ({"chosen": [USER], "rejected": [USER, YES]}, "chosen", "role user"),
        ({"chosen": [USER, NO, NO], "rejected": [USER, YES]}, "chosen", "role assistant"),
        ({"prompt": "other", "chosen": [USER, NO], "rejected": "r"}, "chosen", "prompt"),
        ({"chosen": ["c"], "rejected": ["r"]}, "chosen[0]", "'c'"),
        ({"chosen": [{**USER, "role": "human"}], "rejected": "r"}, "chosen[0].role", "'human'"),
        ({"chosen": [{"role": "user"}], "rejected": "r"}, "chosen[0].content", "missing"),
    ],
)
def test_a_bad_record_names_field_and_finding(record: object, field: str, found: str) -> None:
    with pytest.raises(RecordError) as caught:
        read(record)
    assert caught.value.field == field
    assert found in caught.value.reason
    assert str(caught.value).startswith(f"{field}: ")


def test_identical_responses_are_still_a_pair_to_judge() -> None:
    record = {**NATIVE, "response_b": NATIVE["response_a"], "label": "B"}
    assert read(record).response_a == read(record).response_b


@given(json_values | st.dictionaries(fields, json_values))
def test_any_json_value_is_a_preference_or_a_record_error(record: object) -> None:
    try:
        preference = read(record)
    except RecordError:
        return
    assert preference.context[-1].role == "user"
    assert preference.response_a.strip()
    assert preference.response_b.strip()
