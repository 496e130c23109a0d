"""The judge stage after a kill, an interrupt, or a change of its settings or input."""

import os
from typing import Any

import pytest

from rmr1_jax.io.record_log import RecordLog
from rmr1_jax.judging import reasoning


# A sampled run takes the longer to judge; what a kill leaves is the same, so fewer will do.
@pytest.mark.parametrize(
    ("options", "step"), [((), 1), (("--votes=2", "--swap", "--temperature=1"), 61)]
)
def test_after_a_kill_at_any_byte_the_file_ends_the_same(
    stage: Any, options: tuple[str, ...], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # nothing pulls the plug here
    assert stage.run([stage.pair(n) for n in range(3)], *options) == 0
    whole = stage.output.read_bytes()
    for kept in range(0, len(whole) + 1, step):
        stage.output.write_bytes(whole[:kept])
        assert stage.run(None, *options) == 0
        assert stage.output.read_bytes() == whole, f"after a kill at byte {kept}"


def test_only_what_is_missing_is_judged(stage: Any, fake_judge: Any) -> None:
    stage.run([stage.pair(n) for n in range(5)])
    stage.output.write_bytes(
        b"".join(stage.output.read_bytes().splitlines(keepends=True)[:3]) + b'{"id"'
    )
    fake_judge.judged.clear()
    stage.run()
    assert sorted(fake_judge.judged) == ["pair 3", "pair 4"]
    assert stage.ids() == [f"pair {n}" for n in range(5)]


def test_an_interrupt_keeps_what_is_finished_and_says_how_to_go_on(
    stage: Any, fake_judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_judge.slots, fake_judge.interrupt_after = 1, 3
    assert stage.run([stage.pair(n) for n in range(5)]) == 130
    assert "3 of 5 pairs are in" in capsys.readouterr().err
    assert len(stage.records()) == 3
    fake_judge.interrupt_after = None
    assert stage.run() == 0
    assert stage.ids() == [f"pair {n}" for n in range(5)]


def test_a_finished_file_needs_no_model(
    stage: Any, fake_judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.run([stage.pair(1), stage.pair(2)])
    fake_judge.loads.clear()
    capsys.readouterr()
    assert stage.run() == 0
    assert fake_judge.loads == []
    assert "2 pairs: A " in capsys.readouterr().out


def test_lines_appended_to_the_input_are_judged(stage: Any) -> None:
    stage.run([stage.pair(1)])
    assert stage.run([stage.pair(1), stage.pair(2)]) == 0
    assert stage.ids() == ["pair 1", "pair 2"]


def test_other_settings_are_refused_with_the_difference(
    stage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.run([stage.pair(1), stage.pair(2)])
    before = (stage.output).read_bytes()
    assert stage.run(None, "--max_new_tokens=7", "--seed=3") == 2
    error = capsys.readouterr().err
    assert "max_new_tokens: 2048 there, 7 now" in error
    assert "seed: 0 there, 3 now" in error
    assert (stage.output).read_bytes() == before


def test_another_prompt_is_refused(
    stage: Any, fake_judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:

    stage.run([stage.pair(1)])
    fake_judge.prompt = reasoning()
    assert stage.run([stage.pair(1), stage.pair(2)]) == 2
    assert "prompt_sha256: " in capsys.readouterr().err
    assert stage.ids() == ["pair 1"]


def test_another_model_in_the_same_place_is_refused(
    stage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.run([stage.pair(1)])
    (stage.model / "config.json").write_text('{"vocab_size": 5}')
    assert stage.run() == 2
    assert "model_sha256: " in capsys.readouterr().err


def test_slots_and_mesh_may_change(stage: Any) -> None:
    stage.run([stage.pair(1)])
    assert stage.run([stage.pair(1), stage.pair(2)], "--max_num_seqs=2", "--mesh=data=1") == 0


@pytest.mark.parametrize("pairs", [[9, 2], [1]], ids=["another pair", "fewer pairs"])
def test_a_changed_input_is_refused(
    stage: Any, pairs: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    stage.run([stage.pair(1), stage.pair(2)])
    assert stage.run([stage.pair(n) for n in pairs]) == 2
    assert "the input has changed" in capsys.readouterr().err


@pytest.mark.parametrize("notes", ["my notes\n", "my notes without a line end"])
def test_a_file_of_somebody_else_is_left_alone(
    stage: Any, notes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.output.write_text(notes)
    assert stage.run([stage.pair(1)]) == 2
    assert "choose another --output" in capsys.readouterr().err
    assert stage.output.read_text() == notes


def test_a_line_that_is_no_record_is_named(stage: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stage.run([stage.pair(1), stage.pair(2)])
    stage.output.write_text("{}\n" + stage.output.read_text())
    assert stage.run() == 2
    assert "verdicts.jsonl, line 1: is no record of this stage" in capsys.readouterr().err


def test_two_runs_do_not_write_one_file(stage: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with RecordLog(stage.output):
        assert stage.run([stage.pair(1)]) == 2
    assert "another run is writing it" in capsys.readouterr().err
