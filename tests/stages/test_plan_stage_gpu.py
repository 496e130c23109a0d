"""`--stage=plan` for GPUs that are not here."""

import json
from pathlib import Path

import pytest

from rmr1_jax.main import main

SMALL = {
    "model_type": "qwen2",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
GRPO = """
from rmr1_jax.config import GrpoConfig, PromptsConfig, RolloutConfig
config = GrpoConfig(
    data=PromptsConfig(train="PAIRS", max_prompt=256),
    rollout=RolloutConfig(samples=4, max_response=256, max_num_seqs=16),
    batch_size=32, mini_batch=16, pack_length=1024,
)
"""


@pytest.mark.slow
def test_every_program_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jax_plugins.xla_cuda13", reason="the GPU compiler is not installed")
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    (tmp_path / "recipe.py").write_text(GRPO)
    status = main(
        [
            "--stage=plan",
            f"--config={tmp_path / 'recipe.py'}",
            f"--output={tmp_path / 'out'}",
            f"--model={tmp_path}",
            "--topology=h200:8",
            "--mesh=fsdp=4,tensor=2",
        ]
    )
    found = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert status == 0 and found["fits"] and found["devices"] == 8
    update, rollout = found["programs"]["update"], found["programs"]["rollout"]
    assert 0 < update["memory"]["peak"] < found["hbm"] == pytest.approx(0.95 * 150e9)
    # More than the useful work is computed, since all layers are computed twice, but not by much.
    assert update["useful_flops"] < 8 * update["flops"] < 3 * update["useful_flops"]
    low, high = update["mfu"]
    assert 0 < low < high <= 1 and update["doubts"] == []
    # Weights are gathered over fsdp; what tensor splits is summed in each layer.
    assert {"all-gather", "all-reduce"} <= {*update["collectives"]}
    assert rollout["decode_step"]["cache_copies"] == 0
    assert rollout["decode_step"]["bytes_over_ideal"] > 1
    assert "never measured" in capsys.readouterr().out
