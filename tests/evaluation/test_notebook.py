"""What notebooks show: well-formed pieces that hold every text and no more than it."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rmr1_jax.evaluation.notebook import (
    Html,
    judged_pairs,
    judgement_card,
    page_inside,
    verdict_table,
)
from rmr1_jax.evaluation.record import Record
from rmr1_jax.evaluation.report import write_report
from rmr1_jax.judging import Message, Preference, Side
from rmr1_jax.sampling.judgement import Judgement, too_long
from tests.evaluation.fake_run import HOSTILE, write_fake_run

PAIR = Preference("sum", (Message("user", "2 + 2?"),), "It is 4.", "It is 5.", "A")
TRACE = "<type>Reasoning</type><eval><quote_A>4</quote_A> fits</eval><answer>[[A]]</answer>"


def said(verdict: Side | None, confidence: float | None = None, trace: str = TRACE) -> Judgement:
    return replace(
        too_long(20),
        verdict=verdict,
        problem=None if verdict else "none",
        trace=trace,
        trace_tokens=1234,
        confidence=confidence,
    )


class Piece(HTMLParser):
    """Reads a piece of a page, and checks on the way that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.classes: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.classes += (dict(attrs).get("class") or "").split()
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if {"th", "td"} & {*self.open}:
            self.rows[-1][-1] += data


class TestCard:
    def test_shows_pair_trace_and_verdict(self) -> None:
        shown = Piece(judgement_card(PAIR, said("A", 0.9), "as given"))
        for text in ("as given", "2 + 2?", "It is 4.", "It is 5.", TRACE, "said A: right"):
            assert text in shown.text
        assert "90.0 % sure · 1,234 tokens · prompt 20 tokens" in shown.text
        assert shown.text.index("the better one, says the label") < shown.text.index("It is 4.")
        assert {"part", "eval", "quote_A", "mark", "verdict"} <= {*shown.classes}

    @pytest.mark.parametrize(
        ("verdict", "label", "badge"),
        [("A", "A", "said A: right"), ("B", "A", "said B: wrong"), ("B", None, "said B")],
    )
    def test_holds_the_verdict_against_the_label(
        self, verdict: Side, label: Side | None, badge: str
    ) -> None:
        assert f">{badge}</span>" in judgement_card(replace(PAIR, label=label), said(verdict))

    def test_says_how_sure_the_judge_was_of_what_it_said(self) -> None:
        assert "90.0 % sure" in judgement_card(PAIR, said("B", 0.1))
        assert " sure" not in Piece(judgement_card(PAIR, said(None))).text

    def test_says_why_there_is_no_verdict(self) -> None:
        assert "prompt too long" in judgement_card(PAIR, too_long(9_000))

    def test_takes_a_record_for_a_judgement(self) -> None:
        record = Record("preferences", "sum", 0, "g", None, "A", "A", None, 1.0, trace=None)
        assert "The trace was not kept" in judgement_card(PAIR, record)

    def test_no_text_becomes_markup(self) -> None:
        pair = Preference(HOSTILE, (Message("user", HOSTILE),), HOSTILE, HOSTILE, None)
        shown = Piece(judgement_card(pair, said("A", trace=TRACE + HOSTILE), HOSTILE))
        assert shown.text.count(HOSTILE) == 5

    def test_of_two_conversations_shows_both(self) -> None:
        pair = replace(PAIR, context_b=(Message("user", "And 2 + 3?"),))
        shown = Piece(judgement_card(pair, said("A"))).text
        assert "2 + 2?" in shown and "And 2 + 3?" in shown and "before answer B" in shown

    def test_its_style_stays_inside(self) -> None:
        shown = judgement_card(PAIR, said("A"))
        style = shown[shown.index("<style>") + 7 : shown.index("</style>")].strip()
        assert style.startswith(".rmr1 {") and ":root" not in style
        depth = 0
        for place, character in enumerate(style):
            depth += {"{": 1, "}": -1}.get(character, 0)
            assert depth > 0 or place < len(".rmr1 {") or place == len(style) - 1


class TestTable:
    def test_is_in_terms_of_the_pair_as_given(self) -> None:
        table = Piece(
            verdict_table(
                [
                    (PAIR, said("A", 0.9), said("B", 0.2)),
                    (PAIR, said("A", 0.9), said("A", 0.7)),
                    (PAIR, said("B"), said("A")),
                    (PAIR, said("B"), said(None)),
                ]
            )
        )
        head, *rows = [[" ".join(cell.split()) for cell in row] for row in table.rows]
        assert head == ["question", "as given", "swapped", "together", "label"]
        assert rows[0] == ["2 + 2?", "A 90 %", "A 80 %", "A", "A right"]
        assert rows[1] == ["2 + 2?", "A 90 %", "B 70 %", "the place decided", "A undecided"]
        assert rows[2] == ["2 + 2?", "B", "B", "B", "A wrong"]
        assert rows[3] == ["2 + 2?", "B", "no verdict", "no verdict", "A undecided"]

    def test_without_labels_has_no_column_for_them(self) -> None:
        table = Piece(verdict_table([(replace(PAIR, label=None), said("A"), said("B"))]))
        assert len(table.rows[0]) == len(table.rows[1]) == 4

    def test_shortens_a_long_question(self) -> None:
        pair = replace(PAIR, context=(Message("user", "word " * 100),))
        question = Piece(verdict_table([(pair, said("A"), said("B"))])).rows[1][0]
        assert question.endswith("word…") and len(question) <= 90


def test_an_evaluation_gives_its_pairs_as_the_judge_saw_them(tmp_path: Path) -> None:
    write_fake_run(tmp_path, benchmarks=("rewardbench",))
    judged = judged_pairs(tmp_path, "rewardbench")
    assert len(judged) == 100
    for pair, record in judged:
        assert pair.label == record.chosen_position and pair.id == record.id
    at = {record.chosen_position: pair for pair, record in judged if record.id == "math-prm/3"}
    assert at["A"] == at["B"].swapped()
    assert sum(pair.context_b is not None for pair, _ in judged) == 16


def test_records_without_their_pairs_are_left_out(tmp_path: Path) -> None:
    write_fake_run(tmp_path, benchmarks=("rewardbench",), items=False)
    assert judged_pairs(tmp_path, "rewardbench") == []


def test_a_page_is_held_in_a_frame(tmp_path: Path) -> None:
    write_fake_run(tmp_path, benchmarks=("rewardbench",))
    page = write_report(tmp_path)
    frame = page_inside(page, height=300)
    attributes: dict[str, str | None] = {}
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attrs: attributes.update(attrs)  # type: ignore[method-assign]
    reader.feed(frame)
    assert attributes["height"] == "300" and attributes["title"] == "report.html"
    held = attributes["srcdoc"]
    assert held == page.read_text().replace("<head>", '<head><base href="about:srcdoc">')


def test_what_is_shown_is_html_to_a_notebook_and_short_elsewhere() -> None:
    shown = Html("<b>4</b>")
    assert shown._repr_html_() == "<b>4</b>" and repr(shown) == "<HTML of 8 characters>"
