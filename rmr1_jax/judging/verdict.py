"""From the text of a trace to its verdict, and to the parts the judge was asked to write.

RM-R1's code looks for a verdict in three ways:
  reward        the exact tag `<answer>[[A]]</answer>` in the last 80 characters (lm_as_judge.py)
  evaluation    `[[A]]` anywhere (process_judgement in generative.py)
  distillation  `[[A]]` in the last 100 characters (process_anthropic_first_time.py)
Characters, not tokens; the text of an end-of-sequence token counts if the trace still has it.
"""

import re
from dataclasses import dataclass
from typing import Literal

from rmr1_jax.judging.preference import Side, parse_label

Window = Literal["reward", "evaluation", "distillation"]
# What stands in the place of a verdict: the trace says none, or both; or there is no whole trace.
Problem = Literal["none", "both", "truncated", "prompt_too_long"]
ParsedProblem = Literal["none", "both"]
TraceType = Literal["Reasoning", "Chat"]

_SECTIONS = ("type", "rubric", "solution", "eval", "answer")
_QUOTES = ("quote_A", "quote_B", "summary_A", "summary_B")
_TAG = re.compile(rf"<(/?)({'|'.join((*_SECTIONS, 'justify', *_QUOTES))})>")


@dataclass(frozen=True)
class Answer:
    """A verdict, or the problem that stands in its place: no verdict, or both."""

    verdict: Side | None
    problem: ParsedProblem | None


@dataclass(frozen=True)
class Quote:
    """What the judge quoted from, or summarised of, one response."""

    kind: Literal["quote", "summary"]
    side: Side
    text: str


@dataclass(frozen=True)
class Verdict:
    """A trace taken apart. A part is None where the trace does not have it.

    `rubric` and `evaluation` are verbatim, with the tags inside them; what those tags hold is also
    in `justify` and `quotes`.
    """

    verdict: Side | None
    problem: ParsedProblem | None
    type: TraceType | None
    rubric: str | None
    justify: str | None
    solution: str | None
    evaluation: str | None
    quotes: tuple[Quote, ...]
    thinking: str | None


def answer(text: str, window: Window) -> Answer:
    """The verdict of a trace under one of the published rules."""
    if window == "reward":
        text, form = text[-80:], "<answer>[[{}]]</answer>"
    elif window == "distillation":
        text, form = text[-100:], "[[{}]]"
    else:
        form = "[[{}]]"
    has_a, has_b = form.format("A") in text, form.format("B") in text
    if has_a and has_b:
        return Answer(None, "both")
    if has_a:
        return Answer("A", None)
    if has_b:
        return Answer("B", None)
    return Answer(None, "none")


def reward(text: str, label: str) -> float:
    """+1 if the trace ends with the labelled verdict alone, else -1 (paper §2; lm_as_judge.py).

    `text` is the decoded response with its special tokens: they count towards the 80 characters.
    `label` is "A" or "B" (or "model_a", "model_b"); any other raises UserError.
    """
    return 1.0 if answer(text, "reward").verdict == parse_label(label) else -1.0


def accepted_by_distillation(text: str, label: str) -> bool:
    """The published rule for keeping a distilled trace: the labelled verdict is near its end.

    As published, the other verdict may stand there too.
    """
    return f"[[{parse_label(label)}]]" in text[-100:]


def parse(text: str, window: Window = "evaluation") -> Verdict:
    """Take a trace apart. Never raises; time is linear in the length of the text.

    The verdict is read from all of the text, as published. The parts are read from what follows the
    first `</think>`, so that a format a reasoning model only muses about is not taken for its
    judgement. Where a part is there several times the last complete one counts. An opening tag that
    is never closed runs to the next section (`justify`, quotes and summaries: to the next tag), so
    a truncated trace keeps what it has.
    """
    found = answer(text, window)
    thinking, body = _split_thinking(text)
    blocks = _Blocks(body)
    kind = blocks.last("type")
    return Verdict(
        verdict=found.verdict,
        problem=found.problem,
        type="Reasoning" if kind == "Reasoning" else "Chat" if kind == "Chat" else None,
        rubric=blocks.last("rubric"),
        justify=blocks.last("justify"),
        solution=blocks.last("solution"),
        evaluation=blocks.last("eval"),
        quotes=blocks.quotes(),
        thinking=thinking,
    )


def _split_thinking(text: str) -> tuple[str | None, str]:
    # R1 templates put `<think>` into the prompt, so a trace often has only the closing tag.
    before, closed, after = text.partition("</think>")
    opened = before.lstrip().startswith("<think>")
    if not closed and not opened:
        return None, text
    return before.lstrip().removeprefix("<think>").strip(), after


class _Blocks:
    """Where every tagged block of a text begins and ends, in one pass over its tags."""

    def __init__(self, text: str) -> None:
        self._text = text
        # name -> (start, end, closed), the last block first
        self._spans: dict[str, list[tuple[int, int, bool]]] = {}
        next_tag = next_section = len(text)
        next_same: dict[str, tuple[bool, int]] = {}
        for tag in reversed(list(_TAG.finditer(text))):
            closing, name = tag[1] == "/", tag[2]
            if not closing:
                closed, end = next_same.get(name, (False, 0))
                if not closed:
                    end = next_section if name in _SECTIONS else next_tag
                self._spans.setdefault(name, []).append((tag.end(), end, closed))
            next_same[name] = (closing, tag.start())
            next_tag = tag.start()
            if name in _SECTIONS:
                next_section = tag.start()

    def last(self, name: str) -> str | None:
        spans = self._spans.get(name, [])
        span = next((span for span in spans if span[2]), spans[0] if spans else None)
        return None if span is None else self._text[span[0] : span[1]].strip()

    def quotes(self) -> tuple[Quote, ...]:
        spans = [(span, name) for name in _QUOTES for span in self._spans.get(name, [])]
        return tuple(
            Quote(
                kind="quote" if name.startswith("quote") else "summary",
                side="A" if name.endswith("A") else "B",
                text=self._text[start:end].strip(),
            )
            for (start, end, _), name in sorted(spans)
        )
