"""Progress where there is no terminal, and the count of tokens."""

import io

import pytest
from rich.console import Console

from rmr1_jax.evaluation import judging_progress as progress
from rmr1_jax.evaluation.judging_progress import JudgingProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_plain_line_appears_now_and_then(clock: list[float]) -> None:
    out = io.StringIO()
    with JudgingProgress(total=12, done=2, console=Console(file=out)) as shown:
        shown.tokens_written(50)
        assert out.getvalue() == ""
        clock[0] += 20
        shown.tokens_written(1000)
        shown.pair_done()
        clock[0] += 20
        shown.pair_done()
    assert out.getvalue().splitlines() == [
        "2 of 12 pairs, 50 tokens/s, time left unknown",
        "4 of 12 pairs, 25 tokens/s, time left 160 s",
    ]


def test_a_terminal_gets_a_bar(clock: list[float]) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with JudgingProgress(total=2, done=0, console=console) as shown:
        clock[0] += 10
        shown.tokens_written(5000)
        shown.pair_done()
    assert "1/2" in out.getvalue() and "500 tokens/s" in out.getvalue()


def test_tokens_add_up_when_the_judge_is_called_again(clock: list[float]) -> None:
    shown = JudgingProgress(total=4, done=0, console=Console(file=io.StringIO()))
    for tokens in (10, 30, 5, 20):
        shown.tokens_written(tokens)
    assert shown.tokens == 50


def test_the_last_pair_gets_a_plain_line_however_soon(clock: list[float]) -> None:
    out = io.StringIO()
    with JudgingProgress(total=1, done=0, console=Console(file=out)) as shown:
        clock[0] += 1
        shown.tokens_written(7)
        shown.pair_done()
    assert out.getvalue() == "1 of 1 pairs, 7 tokens/s, time left 0 s\n"
