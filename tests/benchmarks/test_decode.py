"""The smallest run of the benchmark: a random model of two layers, one thread."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def finished(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any]]:
    """Standard output and JSON."""
    output = tmp_path_factory.mktemp("results") / "decode.json"
    command = [sys.executable, "-m", "benchmarks.decode", f"--model={tiny_llama}", "--markdown"]
    command += ["--scale=0.01", "--repeats=1", "--threads=1", f"--output={output}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(output.read_text())


@pytest.fixture(scope="module")
def works(finished: tuple[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    [model] = finished[1]["models"]
    return {work["name"]: work for work in model["workloads"]}


@pytest.mark.slow
def test_tokens_are_counted_exactly(works: dict[str, dict[str, Any]]) -> None:
    assert works["a"]["tokens"] == 16 * 128
    assert works["b"]["tokens"] == 16 * 64
    assert works["b"]["longest"] == 512
    assert works["c"]["tokens"] == 2 * 7 * 64
    for work in works.values():
        sampled = work["ours"]["occupancy"] * work["ours"]["row_steps"]
        assert sampled == pytest.approx(work["tokens"])


@pytest.mark.slow
def test_the_speed_is_the_tokens_over_the_median_of_the_seconds(
    works: dict[str, dict[str, Any]],
) -> None:
    for work in works.values():
        [seconds] = work["ours"]["seconds"]
        assert work["ours"]["tokens_per_second"] == pytest.approx(work["tokens"] / seconds)
        if "theirs" in work:
            [theirs] = work["theirs"]["seconds"]
            assert work["ratio"]["of_medians"] == pytest.approx(theirs / seconds)


@pytest.mark.slow
def test_transformers_waits_for_the_slowest_row_and_computes_each_copy_of_a_prompt(
    works: dict[str, dict[str, Any]],
) -> None:
    assert works["b"]["theirs"]["row_steps"] == 16 * 512
    assert works["c"]["theirs"]["prefill_tokens"] == 7 * works["c"]["prompt_tokens"]
    assert works["c"]["ours"]["prefill_tokens"] == works["c"]["prompt_tokens"]


@pytest.mark.slow
def test_both_engines_make_the_same_greedy_tokens(works: dict[str, dict[str, Any]]) -> None:
    assert works["a"]["agreement"]["compared"] > 1000
    assert works["a"]["agreement"]["tokens"] > 0.9


@pytest.mark.slow
def test_groups_can_have_samples_of_their_own_lengths(works: dict[str, dict[str, Any]]) -> None:
    assert works["c_spread"]["longest"] == 512
    assert works["c_spread"]["mean_length"] == pytest.approx(64, abs=5)
    assert "theirs" not in works["c_spread"]


@pytest.mark.slow
def test_the_table_can_be_pasted_into_a_document(finished: tuple[str, dict[str, Any]]) -> None:
    rows = [line for line in finished[0].splitlines() if line.startswith("| tiny-llama | ")]
    assert [row.split(" | ")[1] for row in rows] == ["(a)", "(b)", "(c)", "(c_spread)"]


def test_a_model_that_is_not_there_is_named_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.decode", f"--model={tmp_path / 'none'}"]
    done = subprocess.run(
        [*command, f"--output={tmp_path / 'out.json'}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"error: {tmp_path / 'none'} does not exist" in done.stderr
    assert "Traceback" not in done.stderr
