"""Which text of a trace is what."""

from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.judging.markup import DEEPEST, PARTS, Piece, pieces

TAGS = [f"<{close}{name}>" for name in sorted(PARTS) for close in ("", "/")]
TEXTS = st.lists(st.sampled_from([*TAGS, "[[A]]", "<|im_end|>", " a < b "]), max_size=30)


@given(TEXTS)
def test_no_text_is_lost_and_parts_are_closed_in_order(tags: list[str]) -> None:
    text = "".join(tags)
    for parts in (True, False):
        found = list(pieces(text, parts=parts))
        assert "".join(piece.text for piece in found) == text
        opened: list[str] = []
        for piece in found:
            if piece.kind == "open":
                opened.append(piece.name)
            elif piece.kind == "close":
                assert opened.pop() == piece.name
        assert not opened


def test_a_judgement_is_taken_apart() -> None:
    assert list(pieces("<eval><quote_A>7</quote_A></eval>[[A]]<|im_end|>")) == [
        Piece("open", name="eval"),
        Piece("mark", "<eval>", "eval"),
        Piece("open", name="quote_A"),
        Piece("mark", "<quote_A>", "quote_A"),
        Piece("text", "7"),
        Piece("mark", "</quote_A>", "quote_A"),
        Piece("close", name="quote_A"),
        Piece("mark", "</eval>", "eval"),
        Piece("close", name="eval"),
        Piece("mark", "[[A]]", "verdict"),
        Piece("mark", "<|im_end|>", "special"),
    ]


def test_a_runaway_trace_does_not_nest_without_end() -> None:
    depth = deepest = 0
    for piece in pieces("<quote_A>" * 1000):
        depth += {"open": 1, "close": -1}.get(piece.kind, 0)
        deepest = max(deepest, depth)
    assert deepest == DEEPEST
