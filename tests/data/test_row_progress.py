"""How far a pass over rows has come, on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from rmr1_jax.data.prepare_report import RowProgress


@pytest.mark.parametrize(("total", "line"), [(5000, "1,200 of 5,000"), (None, "1,200")])
def test_a_log_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, total: int | None, line: str
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    out = io.StringIO()
    with RowProgress("surveyed", total, Console(file=out)) as progress:
        for clock[0], rows in ((1.0, 400), (9.0, 800), (10.0, 1200), (11.0, 1600)):
            progress(rows)
    assert out.getvalue() == f"surveyed: {line} records\n"


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    with RowProgress("written", 10, console) as progress:
        progress(7)
    assert "written" in out.getvalue() and "7/10" in out.getvalue()
