"""Three windows for the verdict, and a parser that takes any text apart."""

import json
import time
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.errors import UserError
from rmr1_jax.judging import Answer, Quote, Window, accepted_by_distillation, answer, parse

WINDOWS: tuple[Window, ...] = get_args(Window)
TAGS = ["type", "rubric", "justify", "solution", "eval", "answer"] + [
    f"{kind}_{side}" for kind in ("quote", "summary") for side in "AB"
]
pieces = st.sampled_from(
    [f"<{tag}>" for tag in TAGS]
    + [f"</{tag}>" for tag in TAGS]
    + ["<think>", "</think>", "[[A]]", "[[B]]", "Chat", "Reasoning", "<", ">", "\n", "\ud800"]
)
traces = st.lists(pieces | st.text(max_size=3), max_size=40).map("".join)

CHAT_TRACE = """<type>Chat</type>
<rubric>
1. Warmth (60%)
<justify>Grief needs it.</justify>
</rubric>
<eval>
<quote_A>"Sorry."</quote_A> is short; <summary_B>B listens.</summary_B>
</eval>
<answer>[[B]]</answer>"""


def test_a_chat_trace_is_taken_apart() -> None:
    parsed = parse(CHAT_TRACE)
    assert (parsed.verdict, parsed.problem, parsed.type) == ("B", None, "Chat")
    assert parsed.rubric == "1. Warmth (60%)\n<justify>Grief needs it.</justify>"
    assert parsed.justify == "Grief needs it."
    assert parsed.evaluation is not None
    assert parsed.evaluation.startswith('<quote_A>"Sorry."')
    assert parsed.quotes == (Quote("quote", "A", '"Sorry."'), Quote("summary", "B", "B listens."))
    assert parsed.solution is None
    assert parsed.thinking is None


def test_a_reasoning_trace_is_taken_apart() -> None:
    parsed = parse("<type> Reasoning </type><solution> 7 </solution><eval>A</eval>[[A]]")
    assert (parsed.verdict, parsed.type, parsed.solution) == ("A", "Reasoning", "7")
    assert (parsed.rubric, parsed.justify, parsed.evaluation) == (None, None, "A")


@pytest.mark.parametrize("opening", ["", "<think>\n", "\n<think>"])
def test_thinking_is_kept_apart_from_the_parts(opening: str) -> None:
    parsed = parse(f"{opening}Okay, <rubric>what</rubric>?\n</think>\n\n<rubric>R</rubric> [[A]]")
    assert parsed.thinking == "Okay, <rubric>what</rubric>?"
    assert parsed.rubric == "R"


def test_thinking_that_never_ends_is_all_there_is() -> None:
    parsed = parse("<think>Okay, <rubric>what</rubric> if [[A]]")
    assert parsed.thinking == "Okay, <rubric>what</rubric> if [[A]]"
    assert (parsed.rubric, parsed.verdict) == (None, "A")


@pytest.mark.parametrize(
    ("text", "rubric"),
    [
        ("<rubric>one</rubric><rubric>two</rubric>", "two"),
        ("<rubric>one</rubric><rubric>tw", "one"),
        ("<rubric>one<rubric>two", "two"),
        ("<rubric>one<rubric>two</rubric>three</rubric>", "two"),
        ("<rubric>one<justify>why</justify> more<eval>so</eval>", "one<justify>why</justify> more"),
        ("</rubric>one<rubric>", ""),
        ("one</rubric>", None),
        ("<Rubric>one</Rubric>", None),
    ],
)
def test_the_last_complete_block_counts(text: str, rubric: str | None) -> None:
    assert parse(text).rubric == rubric


def test_a_truncated_trace_keeps_what_it_has() -> None:
    parsed = parse(CHAT_TRACE[: CHAT_TRACE.index(" listens")])
    assert (parsed.verdict, parsed.problem) == (None, "none")
    assert parsed.justify == "Grief needs it."
    assert parsed.quotes[-1] == Quote("summary", "B", "B")
    assert parsed.evaluation is not None
    assert parsed.evaluation.endswith("<summary_B>B")


def test_an_unclosed_quote_ends_at_the_next_tag() -> None:
    quotes = parse("<quote_A>one <quote_B>two</quote_B> <summary_A>three</eval>").quotes
    assert [quote.text for quote in quotes] == ["one", "two", "three"]


@pytest.mark.parametrize("copied", ["Reasoning or Chat", "chat", "", "Chat."])
def test_an_unknown_type_is_none(copied: str) -> None:
    assert parse(f"<type>{copied}</type>").type is None


# The table of the published evaluation: score of an output with chosen at A, and at B.
@pytest.mark.parametrize(
    ("text", "verdict", "problem", "scores"),
    [
        ("... [[A]] ...", "A", None, (1, 0)),
        ("... [[B]] ...", "B", None, (0, 1)),
        ("[[A]] then [[B]]", None, "both", (0, 0)),
        ("[[A/B]] [[C]] [A]", None, "none", (0, 0)),
    ],
)
def test_evaluation_looks_for_brackets_anywhere(
    text: str, verdict: str | None, problem: str | None, scores: tuple[int, int]
) -> None:
    found = answer(text, "evaluation")
    assert (found.verdict, found.problem) == (verdict, problem)
    assert tuple(int(found.verdict == chosen) for chosen in "AB") == scores
    padded = answer(text + 1000 * "x", "evaluation")
    assert padded == found


def test_distillation_looks_at_the_last_hundred_characters() -> None:
    assert answer("[[A]]" + 95 * "x", "distillation") == Answer("A", None)
    assert answer("[[A]]" + 96 * "x", "distillation") == Answer(None, "none")
    assert answer("[[B]]" + 200 * "x" + "[[A]]", "distillation") == Answer("A", None)


def test_distillation_accepts_a_labelled_verdict_although_the_other_is_there() -> None:
    text = "[[A]] or [[B]]"
    assert answer(text, "distillation").problem == "both"
    assert accepted_by_distillation(text, "A")
    assert accepted_by_distillation(text, "model_b")
    assert not accepted_by_distillation(text + 100 * "x", "A")
    assert not accepted_by_distillation("[[A]]", "B")
    with pytest.raises(UserError, match="label 'C'"):
        accepted_by_distillation(text, "C")


def test_the_windows_disagree_where_the_published_code_does() -> None:
    spaced = "<answer> [[A]] </answer>"
    assert [answer(spaced, window).verdict for window in WINDOWS] == [None, "A", "A"]
    early = "<answer>[[A]]</answer>" + 70 * "x"
    assert [answer(early, window).verdict for window in WINDOWS] == [None, "A", "A"]


@given(st.text() | traces)
def test_any_text_is_parsed(text: str) -> None:
    for window in WINDOWS:
        parsed = parse(text, window)
        found = answer(text, window)
        assert (parsed.verdict, parsed.problem) == (found.verdict, found.problem)
        assert (parsed.verdict is None) == (parsed.problem is not None)
        parts = [parsed.rubric, parsed.justify, parsed.solution, parsed.evaluation, parsed.thinking]
        parts += [quote.text for quote in parsed.quotes]
        assert all(part in text for part in parts if part is not None)


plain = st.text(st.characters(exclude_characters="<>[]"), min_size=1)


@given(rubric=plain, justify=plain, evaluation=plain, quotes=st.lists(plain, max_size=4))
def test_a_trace_written_by_the_format_is_read_back(
    rubric: str, justify: str, evaluation: str, quotes: list[str]
) -> None:
    quoted = "".join(f"<quote_A>{quote}</quote_A>" for quote in quotes)
    parsed = parse(
        f"<type>Chat</type><rubric>{rubric}<justify>{justify}</justify></rubric>"
        f"<eval>{evaluation}{quoted}</eval><answer>[[A]]</answer>",
        "reward",
    )
    assert (parsed.verdict, parsed.type) == ("A", "Chat")
    assert parsed.justify == justify.strip()
    assert parsed.rubric == f"{rubric}<justify>{justify}</justify>".strip()
    assert parsed.evaluation == f"{evaluation}{quoted}".strip()
    assert [quote.text for quote in parsed.quotes] == [quote.strip() for quote in quotes]


@pytest.mark.parametrize(
    "unit",
    [
        *["<eval>", "</eval>", "<quote_A>", "<quote_A><quote_B>", "<rubric><justify>"],
        *["<eval>x</eval>", "<quote_A>x</quote_A>", "<rubric></eval>", "<think>", "</think>"],
        *["<", "<quote_", " ", "[["],
    ],
)
def test_a_million_adversarial_characters_take_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    start = time.perf_counter()
    parse(text)
    # Linear takes well under two seconds here; quadratic would take hours.
    assert time.perf_counter() - start < 30


def published_judgements(shared_data: Path) -> list[dict[str, object]]:
    records: list[dict[str, object]] = []
    folder = shared_data / "rmr1-logs"
    for pattern in ("**/log_result/logs.json", "**/log_result/raw_logs.json"):
        for file in sorted(folder.glob(pattern)):
            records += json.loads(file.read_text(encoding="utf-8"))
    return records


def test_published_traces_parse_and_agree_with_their_recorded_result(shared_data: Path) -> None:
    records = published_judgements(shared_data)
    assert len(records) == 8
    for record in records:
        text = record["answers"]
        assert isinstance(text, str)
        chosen = "B" if record["Is_Chosen_Answer_Shuffled_toPositionB"] else "A"
        for window in WINDOWS:
            parsed = parse(text, window)
            assert parsed.problem is None
            assert int(parsed.verdict == chosen) == record["results"]
        assert parsed.type in ("Chat", "Reasoning")
        assert parsed.evaluation
        assert parsed.quotes
        if parsed.type == "Chat":
            assert parsed.rubric
            assert parsed.justify
        else:
            assert parsed.solution
