"""The smallest run of the benchmark: a random judge of the toy task, a dozen pairs."""

import json
from pathlib import Path

import pytest

from tests.stages.tiny_grpo import write_model, write_pairs


@pytest.mark.slow
def test_both_engines_write_the_same_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from benchmarks import judging

    monkeypatch.setattr(judging, "prepare_process", lambda threads: None)
    model, pairs = write_model(tmp_path / "model"), write_pairs(tmp_path / "pairs.jsonl")
    output = tmp_path / "judging.json"
    options = [f"--model={model}", f"--preferences={pairs}", "--max_new_tokens=16"]
    assert judging.main([*options, "--batches=1,4", "--trial=2", f"--output={output}"]) == 0

    report = json.loads(output.read_text())
    assert report["pairs"] == report["same_trace"] == report["same_verdict"] == 12
    assert report["differences"] == []
    assert report["ours"]["tokens"] == report["theirs"]["tokens"] > 12
    assert (
        report["theirs"]["batch"]
        == min((seconds, int(size)) for size, seconds in report["theirs"]["trials"].items())[1]
    )
    assert report["ratio"] == pytest.approx(report["theirs"]["seconds"] / report["ours"]["seconds"])
    assert "12 of 12" in capsys.readouterr().out
