"""The benchmark of a training step, on a model that is tiny."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import sft_step


@pytest.mark.parametrize("everything", [True, False])
def test_rows_are_full_and_learn_what_they_say(everything: bool) -> None:
    batch = sft_step.packed_rows(96, rows=3, pack_length=64, everything=everything)
    assert (batch.segment_ids > 0).all()
    learnt = (batch.loss_weights > 0).sum()
    assert learnt == 3 * 63 if everything else 40 < learnt < 90
    for row in range(3):
        at = batch.loss_positions[row][batch.loss_weights[row] > 0]
        np.testing.assert_array_equal(batch.loss_targets[row][: len(at)], batch.tokens[row][at + 1])
        # A target is learnt from its own sequence.
        segments = batch.segment_ids[row]
        np.testing.assert_array_equal(segments[at], segments[at + 1])


@pytest.mark.nightly
def test_both_take_the_same_steps_and_a_ratio_is_written(
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sft_step, "prepare_process", lambda threads: None)
    output = tmp_path / "step.json"
    model = tiny_checkpoint("qwen2")
    arguments = [f"--model={model}", "--rows=2", "--pack_length=32", "--repeats=1"]
    assert sft_step.main([*arguments, f"--output={output}", "--threads=1", "--markdown"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("| model | learnt |") and len(shown) == 4
    for record in json.loads(output.read_text())["models"]:
        losses = record["losses"]
        np.testing.assert_allclose(losses["ours"], losses["theirs"], rtol=sft_step.TOLERANCE)
        assert record["ratio"]["low"] <= record["ratio"]["median"] <= record["ratio"]["high"]
