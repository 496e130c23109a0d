"""Progress of a distillation, with and without a terminal."""

import io

import pytest
from rich.console import Console

from rmr1_jax.io import progress as live
from rmr1_jax.synthesis.reply_cache import Spend
from rmr1_jax.synthesis.synthesis_progress import SynthesisProgress

SPEND = Spend(requests=1200, replies=1100, prompt_tokens=5000, completion_tokens=700)


def show(console: Console, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three answers, so many seconds apart."""
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    with SynthesisProgress(number=1, teacher="[o3]", total=5, console=console) as progress:
        for kept, failed in ((True, False), (False, False), (False, True)):
            now[0] += seconds
            progress.answered(kept=kept, failed=failed, spend=SPEND)


def test_a_plain_line_appears_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    show(Console(file=out), 6.0, monkeypatch)
    assert out.getvalue() == (
        "pass 1, [o3]: 2 of 5 pairs, 1 accepted, 1 rejected; 1,200 requests, 5,700 tokens\n"
    )


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    show(Console(file=out, force_terminal=True, width=140), 1.0, monkeypatch)
    assert "pass 1, [o3]" in out.getvalue() and "3/5" in out.getvalue()
    assert "1 accepted, 1 rejected, 1 failed; 1,200 requests" in out.getvalue()
