"""Traces of a run, to read later: every line kept, and a page of the latest."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.judging.markup import PARTS, highlighted
from rmr1_jax.rl import samples
from rmr1_jax.rl.samples import (
    PAGE,
    SAMPLES,
    SampleLog,
    TraceRecord,
    in_groups,
)

RIGHT = "<type>Chat</type><eval>A it is.</eval><answer>[[A]]</answer><|im_end|>"
WRONG = "<answer>[[B]]</answer>"
VOID = {"meta", "input"}


class Page(HTMLParser):
    """Reads a page, and checks on the way that every tag is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.traces: list[dict[str, str | None]] = []
        self.addresses: list[str | None] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        self.addresses += [about[name] for name in ("src", "href") if name in about]
        if tag in VOID:
            return
        self.open.append((tag, about))
        self.texts.setdefault(tag, []).append("")
        if about.get("class") == "trace":
            self.traces.append(about)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for tag, _ in self.open:
            self.texts[tag][-1] += data


def trace(text: str = RIGHT, **about: Any) -> TraceRecord:
    record: dict[str, Any] = {
        "id": "pair-1",
        "label": "A",
        "sample": 0,
        "prompt": "Which?",
        "trace": text,
    }
    record |= {"reward": 1.0, "advantage": 0.5, "tokens": 12, "truncated": False}
    return TraceRecord(**(record | about))


def group(id: str, rewards: tuple[float, ...] = (1.0, -1.0)) -> list[TraceRecord]:
    return [
        trace(RIGHT if reward > 0 else WRONG, id=id, sample=sample, reward=reward)
        for sample, reward in enumerate(rewards)
    ]


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / SAMPLES).read_bytes().split(b"\n")[:-1]]


def page(workdir: Path) -> Page:
    return Page((workdir / PAGE).read_text(encoding="utf-8"))


def test_a_line_has_the_trace_and_what_became_of_it(tmp_path: Path) -> None:
    SampleLog(tmp_path, after=0).write(3, [trace()])
    assert lines(tmp_path) == [
        {
            "step": 3,
            "id": "pair-1",
            "label": "A",
            "sample": 0,
            "prompt": "Which?",
            "trace": RIGHT,
            "reward": 1.0,
            "advantage": 0.5,
            "tokens": 12,
            "truncated": False,
            "verdict": "A",
            "problem": None,
        }
    ]


def test_the_verdict_is_the_one_that_was_rewarded(tmp_path: Path) -> None:
    early = "<answer>[[A]]</answer>" + "x" * 80
    both = "<answer>[[A]]</answer><answer>[[B]]</answer>"
    SampleLog(tmp_path, after=0).write(1, [trace(early), trace(both, sample=1)])
    found = [(line["verdict"], line["problem"]) for line in lines(tmp_path)]
    assert found == [(None, "none"), (None, "both")]


def test_a_run_that_goes_on_makes_later_traces_again(tmp_path: Path) -> None:
    log = SampleLog(tmp_path, after=0)
    for step in (10, 20, 30):
        log.write(step, group(f"of step {step}"))
    with (tmp_path / SAMPLES).open("a") as file:
        file.write('{"step": 40, "id": "of st')  # killed while writing
    log = SampleLog(tmp_path, after=20)
    assert page(tmp_path).texts["h2"] == ["Step 20", "Step 10"]
    log.write(30, group("again"))
    assert [line["id"] for line in lines(tmp_path)][-3:] == ["of step 20", "again", "again"]
    assert page(tmp_path).texts["h3"] == ["again", "of step 20", "of step 10"]


def test_the_page_shows_the_latest_groups_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "GROUPS_SHOWN", 3)
    log = SampleLog(tmp_path, after=0)
    log.write(1, group("a") + group("b"))
    log.write(2, group("c") + group("d"))
    assert page(tmp_path).texts["h3"] == ["c", "d", "b"]
    SampleLog(tmp_path, after=2).write(3, group("e"))
    assert page(tmp_path).texts["h3"] == ["e", "c", "d"]
    assert len(lines(tmp_path)) == 10


def test_a_prompt_drawn_twice_in_a_step_has_two_groups(tmp_path: Path) -> None:
    SampleLog(tmp_path, after=0).write(1, group("twice") + group("twice"))
    assert [len(members) for members in in_groups(lines(tmp_path))] == [2, 2]


def test_the_page_filters_by_what_a_trace_earned(tmp_path: Path) -> None:
    cut = trace("<rubric>", id="mixed", sample=2, reward=-1.0, truncated=True)
    SampleLog(tmp_path, after=0).write(1, [*group("mixed"), cut, *group("equal", (1.0, 1.0))])
    seen = page(tmp_path)
    about = [
        (found["data-outcome"], found["data-reward"], found["data-truncated"])
        for found in seen.traces
    ]
    assert about == [
        ("right", "1.0", "false"),
        ("wrong", "-1.0", "false"),
        ("none", "-1.0", "true"),
        ("right", "1.0", "false"),
        ("right", "1.0", "false"),
    ]
    mixed, equal = seen.texts["article"]
    assert "mean reward -0.33" in mixed and "no signal" not in mixed
    assert "mean reward +1.00" in equal and "no signal" in equal


def test_the_page_needs_no_network_and_runs_nothing_that_a_model_wrote(tmp_path: Path) -> None:
    attack = "</pre></script><script>alert('&')</script><b>bold</b><!-- " + RIGHT
    SampleLog(tmp_path, after=0).write(1, [trace(attack, id="<i>&\"'", prompt=attack)])
    seen = page(tmp_path)
    assert seen.texts["pre"] == [attack, attack]
    assert seen.texts["h3"] == ["<i>&\"'"]
    assert len(seen.texts["script"]) == 1 and seen.addresses == []


MARKS = [f"<{close}{name}>" for name in sorted(PARTS) for close in ("", "/")]


@given(st.lists(st.sampled_from([*MARKS, "[[A]]", "<|im_end|>", " a < b ", "\n"]), max_size=12))
def test_whatever_a_trace_opens_is_closed(pieces: list[str]) -> None:
    text = "".join(pieces)
    for parts in (True, False):
        seen = Page(f"<p>{highlighted(text, parts=parts)}</p>")
        assert seen.texts["p"] == [text]


def blocks(text: str) -> list[tuple[str, str]]:
    """The parts of a trace that get a block, and what stands in each."""

    class Blocks(Page):
        def __init__(self, html: str) -> None:
            self.found: list[tuple[str, str]] = []
            super().__init__(html)

        def handle_data(self, data: str) -> None:
            self.found += [
                (str(about["class"]).removeprefix("part "), data)
                for tag, about in self.open
                if tag == "span"
            ]

    return Blocks(str(highlighted(text))).found


def test_a_section_that_is_never_closed_ends_where_the_next_begins() -> None:
    assert blocks("<eval>B is") == [("eval", "<eval>"), ("eval", "B is")]
    assert ("eval", "[[A]]") not in blocks("<eval>B is <answer>[[A]]</answer>")


def test_what_a_judge_muses_about_is_no_part_of_its_judgement() -> None:
    found = blocks("I must end with <answer>[[A]]</answer>\n</think>\n<answer>[[B]]</answer>")
    assert ("think", "[[A]]") in found and ("answer", "[[A]]") not in found
    assert ("answer", "[[B]]") in found
