"""What a training run shows, with and without a terminal."""

import io

import pytest
from rich.console import Console

from rmr1_jax import live
from rmr1_jax.training.progress import TrainingProgress

NUMBERS = {"loss": 1.5, "mfu": 0.41, "tokens_per_second": 12345.0, "reward": None}


def shown(console: Console, seconds: float, monkeypatch: pytest.MonkeyPatch) -> str:
    """Three steps of five, so many seconds apart; the second one validates."""
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    with TrainingProgress(steps=5, done=2, console=console) as progress:
        for step in (3, 4, 5):
            now[0] += seconds
            validated = {"validation/loss": 0.25, "validation/verdict_accuracy": 0.875}
            progress.step_done(step, NUMBERS | (validated if step == 4 else {}))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_plain_line_appears_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Console(file=io.StringIO(), width=40), 6.0, monkeypatch)
    assert text.splitlines() == [
        "step 4: validation loss 0.2500, judged right 87.5%",
        "4 of 5 steps  loss 1.5000  12,345 tokens/s  MFU 41%  6 s left",
        "5 of 5 steps  loss 1.5000  12,345 tokens/s  MFU 41%  0 s left",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    text = shown(console, 1.0, monkeypatch)
    assert "5/5" in text and "MFU 41%" in text and "judged right 87.5%" in text


def test_all_processes_but_one_are_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, quiet=True)
    assert shown(console, 20.0, monkeypatch) == ""
