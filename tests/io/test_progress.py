"""A bar on a terminal, nothing elsewhere."""

import io

import pytest
from rich.console import Console

from rmr1_jax.io import progress


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_shows_how_much_is_done_on_a_terminal_only(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        progress,
        "Console",
        lambda **given: Console(file=screen, force_terminal=terminal, width=80),
    )
    with progress.bar("reading [weights]", 10) as bar:
        bar.reach(4)
        bar.advance(1)
    assert ("reading [weights]" in screen.getvalue()) is terminal
    assert ("50%" in screen.getvalue()) is terminal
