"""Where the chosen response goes, and that nothing but its place says so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.data.converters import example_from_record
from rmr1_jax.data.example import Example
from rmr1_jax.data.mixture import place
from rmr1_jax.judging import JudgePrompt, Message, chain_of_rubrics, reasoning

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)
SAID = TEXT.filter(lambda text: bool(text.strip()))
CONTEXT = st.lists(SAID, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1)


def messages(turns: list[str], response: str) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(turns)
    said = [*turns, response]
    return [
        {"role": role, "content": text} for role, text in zip(roles[: len(said)], said, strict=True)
    ]


@pytest.mark.parametrize("prompt", [chain_of_rubrics(), reasoning()], ids=lambda p: p.style)
@given(one=CONTEXT, other=CONTEXT, first=SAID, second=SAID, same=st.booleans())
def test_no_label_can_be_read_off_the_prompt(
    prompt: JudgePrompt, one: list[str], other: list[str], first: str, second: str, same: bool
) -> None:
    """The prompt is the same whichever response won, once that one stands in the same place: so it
    depends on the texts at A and B alone. The published script spells "Chatbot B" by the label."""
    other = one if same else other
    won, lost = messages(one, first), messages(other, second)
    for side, opposite in (("A", "B"), ("B", "A")):
        wins = example_from_record({"chosen": won, "rejected": lost}, source="", default_id="1")
        loses = example_from_record({"chosen": lost, "rejected": won}, source="", default_id="1")
        wins, loses = place(wins, side), place(loses, opposite)  # type: ignore[arg-type]
        assert (wins.label, loses.label) == (side, opposite)
        assert wins.messages(prompt) == loses.messages(prompt)


def test_an_example_is_placed_by_swapping_its_responses() -> None:
    record = {"question": "Q", "response_a": "a", "response_b": "b", "label": "B"}
    given = example_from_record(record, source="set", default_id="1")
    assert place(given, None) is given
    assert place(given, "B") is given
    placed = place(given, "A")
    assert placed.preference is not None
    assert (placed.label, placed.preference.label) == ("A", "A")
    assert (placed.preference.response_a, placed.preference.response_b) == ("b", "a")
    assert place(placed, "B") == given


def test_a_released_prompt_stays_as_it_is() -> None:
    released = Example("1", "set", "A", prompt=(Message("user", "A or B?"),))
    assert place(released, "B") is released
