"""Pictures of runs: what is on them, read from the axes that were saved."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from rmr1_jax.io.run_directory import METRICS
from rmr1_jax.training.curves import CURVES, draw_curves, draw_stages, elapsed, running_mean

PNG = b"\x89PNG\r\n"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of the last picture."""
    kept: list[Any] = []
    save = Figure.savefig

    def watched(figure: Figure, *args: Any, **options: Any) -> None:
        kept[:] = figure.axes
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", watched)
    return kept


def written(workdir: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    workdir.mkdir(exist_ok=True)
    (workdir / METRICS).write_text("".join(json.dumps(record) + "\n" for record in records))
    return workdir


def validation(right: float, consistent: float) -> dict[str, float]:
    names = ("", "_given", "_swapped")
    return {f"validation/verdict_accuracy{name}": right for name in names} | {
        "validation/consistent": consistent
    }


def lines(axes: Any) -> dict[str, list[tuple[float, float]]]:
    return {
        line.get_label(): list(zip(*map(list, line.get_data()), strict=True)) for line in axes.lines
    }


def titles(panels: Sequence[Any]) -> list[str]:
    return [panel.get_title(loc="left") for panel in panels]


def test_a_run_without_a_number_has_no_picture(tmp_path: Path) -> None:
    assert draw_curves(tmp_path, "run") is None
    assert draw_stages([("sft", tmp_path)], tmp_path / "stages.png", "run") is None
    assert list(tmp_path.iterdir()) == []


def test_fine_tuning_shows_its_loss_and_its_verdicts(tmp_path: Path, drawn: list[Any]) -> None:
    run = written(
        tmp_path / "run", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0} | validation(0.5, 0)]
    )
    path = draw_curves(run, "run")
    assert path == run / CURVES and path.read_bytes().startswith(PNG)
    loss, verdicts = drawn
    assert lines(loss)["training"] == [(1, 2.0), (2, 1.0)]
    assert lines(verdicts)["held out, both orders"] == [(2, 0.5)]


def test_reinforcement_learning_shows_what_was_measured_while_training_and_held_out(
    tmp_path: Path, drawn: list[Any]
) -> None:
    records: list[dict[str, Any]] = [{"step": 0} | validation(0.8, 0.6)]
    for step in (1, 2):
        record: dict[str, Any] = {
            "step": step,
            "reward": 0.5,
            "accuracy": 0.75,
            "format": 0.9,
            "kl": 0.01 * step,
        }
        record |= {"entropy": "nan", "clipped_low": 0.0, "mismatch_max": 0.0}
        record |= {"seconds": 3.0, "seconds_rollout": 2.0, "seconds_update": 1.0}
        records.append(record)
    records[-1] |= validation(0.9, 0.85)
    path = draw_curves(written(tmp_path / "run", records), "run")
    assert path is not None and path.read_bytes().startswith(PNG)
    shown = dict(zip(titles(drawn), drawn, strict=True))
    assert list(shown) == [
        "judged right",
        "reward, mean of a step",
        "share of groups or traces",
        "KL to the reference (nats a token)",
        "share of tokens clipped",
        "sampler against trainer, log-probability",
        "seconds a step",
    ]
    right = lines(shown["judged right"])
    assert right["while training"] == [(1, 0.75), (2, 0.75)]
    assert right["held out, both orders"] == [(0, 0.8), (2, 0.9)]
    assert right["same winner in both orders"] == [(0, 0.6), (2, 0.85)]
    lost = lines(shown["share of groups or traces"])["traces without verdict"]
    assert lost == [(1, pytest.approx(0.1)), (2, pytest.approx(0.1))]
    # The logarithm of no difference at all is not drawn.
    assert lines(shown["sampler against trainer, log-probability"]) == {}
    legend = shown["seconds a step"].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["rollout", "update"]


def test_many_steps_are_shown_by_their_running_mean(tmp_path: Path, drawn: list[Any]) -> None:
    records = [{"step": step, "reward": float(step % 2)} for step in range(1, 101)]
    draw_curves(written(tmp_path / "run", records), "run")
    raw, mean = drawn[0].lines
    assert set(raw.get_ydata()) == {0.0, 1.0}
    assert all(0.3 < value < 0.7 for value in mean.get_ydata())
    assert running_mean([0.0, 3.0, 6.0, 0.0], 1) == [1.5, 3.0, 3.0, 3.0]


def test_a_record_stands_for_the_steps_since_the_last_one() -> None:
    records: list[dict[str, Any]] = [
        {"step": 0},
        {"step": 1, "seconds": 9.0},
        {"step": 10, "seconds": 2.0},
    ]
    assert elapsed(records) == [0.0, 9.0, 27.0]


def test_stages_follow_each_other_on_one_clock(tmp_path: Path, drawn: list[Any]) -> None:
    sft = written(
        tmp_path / "sft",
        [{"step": 0} | validation(0.5, 0.1), {"step": 4, "seconds": 30.0} | validation(0.75, 0.6)],
    )
    grpo = written(
        tmp_path / "grpo",
        [{"step": 1, "seconds": 60.0}, {"step": 2, "seconds": 60.0} | validation(0.98, 0.96)],
    )
    out = tmp_path / "stages.png"
    assert draw_stages([("SFT", sft), ("GRPO", grpo)], out, "one after the other") == out
    assert out.read_bytes().startswith(PNG)
    [axes] = drawn
    assert lines(axes)["held out, both orders"] == [(0, 0.5), (2, 0.75), (4, 0.98)]
    assert lines(axes)["same winner in both orders"] == [(0, 0.1), (2, 0.6), (4, 0.96)]
    texts = {text.get_text() for text in axes.texts}
    assert texts == {"SFT", "GRPO", "50.0%", "75.0%", "98.0%"}
    assert [(band.get_x(), band.get_width()) for band in axes.patches] == [(0, 2), (2, 2)]


def test_a_stage_that_has_not_begun_takes_no_room(tmp_path: Path, drawn: list[Any]) -> None:
    sft = written(tmp_path / "sft", [{"step": 1, "seconds": 60.0} | validation(0.75, 0.6)])
    assert draw_stages([("SFT", sft), ("GRPO", tmp_path)], tmp_path / "s.png", "run")
    [axes] = drawn
    assert {text.get_text() for text in axes.texts} == {"SFT", "75.0%"}
    assert axes.get_xlim() == (0, 1)
