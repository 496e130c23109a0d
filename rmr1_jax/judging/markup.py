"""The marks of a trace: which of its text is a rubric, a quote, a verdict. For pages that show it.

`verdict.parse` takes the parts of a trace out; here all of the text stays, in its order.
"""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from markupsafe import Markup, escape

# A part may hold tags; a section also ends where the next one begins (as in verdict.py).
SECTIONS = {"type", "rubric", "solution", "eval", "answer"}
PARTS = SECTIONS | {"think", "justify", "quote_A", "quote_B", "summary_A", "summary_B"}
# Parts in parts. A judgement nests three; a runaway trace may open thousands, which no page bears.
DEEPEST = 8
_MARKS = re.compile(
    rf"<(?P<close>/?)(?P<name>{'|'.join(sorted(PARTS))})>"
    r"|(?P<verdict>\[\[[AB]\]\])"
    r"|(?P<special><[|\uff5c][^|\uff5c\s]{1,40}[|\uff5c]>)"
)


class Piece(NamedTuple):
    """A stretch of text, a mark in it, or where a part begins or ends."""

    kind: Literal["text", "mark", "open", "close"]
    text: str = ""
    """Of texts and marks. All of them together are the whole trace."""
    name: str = ""
    """Of a part; of a mark: that of its part, or "verdict" or "special" (a special token)."""


def pieces(text: str, *, parts: bool = True) -> Iterator[Piece]:
    """The text in pieces, and (`parts`) where each part of a judgement begins and ends.

    Every part that is opened is closed again, in order, whatever the text opens and does not close.
    """
    open_parts: list[str] = []

    def close(count: int) -> Iterator[Piece]:
        for _ in range(count):
            yield Piece("close", name=open_parts.pop())

    if parts and "</think>" in text and not text.lstrip().startswith("<think>"):
        # R1 templates put the opening tag into the prompt.
        open_parts.append("think")
        yield Piece("open", name="think")
    end = 0
    for mark in _MARKS.finditer(text):
        if mark.start() > end:
            yield Piece("text", text[end : mark.start()])
        end = mark.end()
        name = mark["name"]
        shown = Piece("mark", mark[0], name or str(mark.lastgroup))
        # What a judge only muses about is not taken for its judgement.
        musing = "think" in open_parts and name != "think"
        if not parts or name is None or musing:
            yield shown
        elif mark["close"]:
            yield shown
            if name in open_parts:
                yield from close(open_parts[::-1].index(name) + 1)
        else:
            if name in SECTIONS:
                yield from close(len(open_parts))
            if len(open_parts) < DEEPEST:
                open_parts.append(name)
                yield Piece("open", name=name)
            yield shown
    if end < len(text):
        yield Piece("text", text[end:])
    yield from close(len(open_parts))


def highlighted(text: str, *, parts: bool = True) -> Markup:
    """Escaped text with its marks coloured, and (`parts`) each part of a judgement in a block.

    Always well-formed, whatever the text opens and does not close.
    """
    html: list[str] = []
    for kind, shown, name in pieces(text, parts=parts):
        if kind == "open":
            html.append(f'<span class="part {name}">')
        elif kind == "close":
            html.append("</span>")
        elif kind == "mark":
            html.append(f'<b class="mark {name}">{escape(shown)}</b>')
        else:
            html.append(str(escape(shown)))
    return Markup("".join(html))
