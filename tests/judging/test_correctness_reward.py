"""The worked cases of the published reward."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.errors import UserError
from rmr1_jax.judging import reward

A, B = "<answer>[[A]]</answer>", "<answer>[[B]]</answer>"
QWEN, DEEPSEEK = "<|im_end|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        (f"...</eval>\n{A}{QWEN}", "model_a", 1.0),
        (f"...</eval>\n{A}{QWEN}", "model_b", -1.0),
        (f"...</eval>\n{B}{QWEN}", "B", 1.0),
        (f"{A}{60 * 'x'}{QWEN}", "A", -1.0),
        (f"{A}\n{B}{QWEN}", "A", -1.0),
        (f"{A}\n{B}{QWEN}", "B", -1.0),
        (f"<answer> [[A]] </answer>{QWEN}", "A", -1.0),
        (f"<Answer>[[A]]</Answer>{QWEN}", "A", -1.0),
        ("", "A", -1.0),
        # An earlier mention of the other verdict is outside the window and costs nothing.
        (f"{B}{60 * 'x'}{A}", "A", 1.0),
        # A doubled closing tag, as some published traces have, is harmless.
        (f"{A}\n</answer>{QWEN}", "A", 1.0),
    ],
)
def test_worked_cases(text: str, label: str, expected: float) -> None:
    assert reward(text, label) == expected


@pytest.mark.parametrize(("end", "room"), [(QWEN, 48), (DEEPSEEK, 39), ("", 58)])
def test_the_end_of_sequence_text_takes_its_part_of_the_eighty_characters(
    end: str, room: int
) -> None:
    assert reward(A + room * "x" + end, "A") == 1.0
    assert reward(A + (room + 1) * "x" + end, "A") == -1.0


@pytest.mark.parametrize("label", ["", "a", "C", "tie", "model_c"])
def test_another_label_is_refused(label: str) -> None:
    with pytest.raises(UserError, match="it must be A, B, model_a or model_b"):
        reward(A, label)


@given(st.lists(st.sampled_from([A, B]) | st.text(max_size=30), max_size=6).map("".join))
def test_at_most_one_label_is_rewarded(text: str) -> None:
    assert {reward(text, "A"), reward(text, "B")} <= {1.0, -1.0}
    assert reward(text, "A") + reward(text, "B") <= 0
    assert reward(text, "A") == reward(text, "model_a")
