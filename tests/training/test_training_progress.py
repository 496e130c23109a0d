"""What a training run shows, with and without a terminal."""

import io

import pytest
from rich.console import Console

from rmr1_jax.io import progress as live
from rmr1_jax.training.metrics import TrainingProgress

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
    return written(console)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rows(progress: TrainingProgress) -> list[str]:
    """What stands beside the bar."""
    assert progress._bar is not None
    lines: list[str] = progress._bar.tasks[0].fields["numbers"].splitlines()
    return lines


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


REWARDED = {
    "loss": 0.0001,
    "reward": 0.5,
    "accuracy": 0.75,
    "response_tokens": 412.4,
    "kl": 0.00123,
    "tokens_per_second_rollout": 2345.6,
    "tokens_per_second_update": 6789.0,
    "seconds": 61.26,
}


def test_a_rewarded_step_shows_how_it_judged() -> None:
    console = Console(file=io.StringIO())
    with TrainingProgress(steps=1, done=0, console=console) as progress:
        progress.step_done(1, REWARDED)
    assert written(console).startswith(
        "1 of 1 steps  reward +0.500  right 75%  412 tokens a trace  KL 0.0012  "
        "rollout 2,346 tokens/s  update 6,789 tokens/s  61.3 s/step  "
    )


def test_a_validation_without_loss_tells_how_consistent_it_is() -> None:
    console = Console(file=io.StringIO())
    with TrainingProgress(steps=40, done=19, console=console) as progress:
        judged = {"validation/verdict_accuracy": 0.912, "validation/consistent": 0.84}
        progress.step_done(20, REWARDED | judged)
    assert written(console) == "step 20: judged right 91.2% (consistent 84.0%)\n"


def test_a_long_step_prints_its_phase_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO())
    with TrainingProgress(steps=9, done=4, console=console) as progress:
        for now[0] in range(0, 70, 10):
            progress.phase(f"rollout {now[0]:.0f} of 99 groups")
        progress.step_done(5, REWARDED)  # 60 s: less than a phase's interval after the last line
        now[0] = 95
        progress.phase("reward")
    lines = [line.split("  ")[0] for line in written(console).splitlines()]
    assert lines == [
        "step 5 of 9: rollout 30 of 99 groups",
        "step 5 of 9: rollout 60 of 99 groups",
        "step 6 of 9: reward",
    ]


def test_a_terminal_shows_the_phase_below_the_numbers_until_the_step_is_done() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with TrainingProgress(steps=2, done=0, console=console) as progress:
        progress.phase("rollout [1] of 8 groups")
        assert rows(progress) == ["rollout [1] of 8 groups"]
        progress.step_done(1, REWARDED)
        progress.phase("update 3 of 8")
        first, second = rows(progress)
        assert "reward +0.500" in first and second == "update 3 of 8"
        progress.step_done(2, REWARDED)
        assert len(rows(progress)) == 1
        progress.phase("reward")
    assert written(console).splitlines()[-2].strip() == "reward"


def test_a_validation_before_the_first_step_is_no_progress() -> None:
    console = Console(file=io.StringIO())
    with TrainingProgress(steps=5, done=0, console=console) as progress:
        progress.step_done(0, {"validation/loss": 2.0, "validation/verdict_accuracy": 0.5})
    assert written(console) == "step 0: validation loss 2.0000, judged right 50.0%\n"
