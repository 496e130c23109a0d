"""The smallest run of the benchmark: a random model of one layer, one thread."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def tiny_llama(tmp_path: Path) -> Path:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    directory = tmp_path / "tiny-llama"
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


@pytest.mark.nightly
def test_the_smallest_run_counts_every_token(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "decode.json"
    command = [sys.executable, "-m", "benchmarks.decode", f"--model={tiny_llama}", "--markdown"]
    command += ["--scale=0.01", "--repeats=1", "--threads=1", f"--output={output}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [model] = json.loads(output.read_text())["models"]
    a, b, c, c_spread = model["workloads"]

    assert [work["name"] for work in model["workloads"]] == ["a", "b", "c", "c_spread"]
    assert (a["tokens"], b["tokens"], c["tokens"]) == (16 * 128, 16 * 64, 2 * 7 * 64)
    assert b["longest"] == c_spread["longest"] == 512
    assert c_spread["mean_length"] == pytest.approx(64, abs=5)
    for work in model["workloads"]:
        ours, [seconds] = work["ours"], work["ours"]["seconds"]
        assert ours["occupancy"] * ours["row_steps"] == pytest.approx(work["tokens"])
        assert ours["tokens_per_second"] == pytest.approx(work["tokens"] / seconds)

    # transformers waits for the slowest row, and computes each copy of a prompt.
    assert b["theirs"]["row_steps"] == 16 * 512
    assert c["theirs"]["prefill_tokens"] == 7 * c["prompt_tokens"] == 7 * 2 * 1024
    assert c["ours"]["prefill_tokens"] == c["prompt_tokens"]
    assert c["ratio"]["of_medians"] == pytest.approx(
        c["theirs"]["seconds"][0] / c["ours"]["seconds"][0]
    )
    assert a["agreement"]["compared"] > 1000
    assert a["agreement"]["tokens"] > 0.9

    table = done.stdout.splitlines()
    assert table[0] == "| tiny-llama | (a) | (b) | (c) | (c_spread) |"
    assert table[2].startswith("| rmr1_jax, tokens/s | ")


def test_a_model_that_is_not_there_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from benchmarks import decode

    monkeypatch.setattr(decode, "prepare_process", lambda threads: None)
    monkeypatch.setattr(decode, "copy_bandwidth", lambda threads: 1e9)
    options = [f"--model={tmp_path / 'none'}", f"--output={tmp_path / 'out.json'}"]
    assert decode.main(options) == 2
    assert f"error: {tmp_path / 'none'} does not exist" in capsys.readouterr().err
