"""`--stage=plan`: compiled for chips that are not here, in a directory of its own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.main import main
from rmr1_jax.models.checkpoint import load_config
from rmr1_jax.models.weight_map import count_parameters
from rmr1_jax.planning.plan import Plan, Planner

pytest.importorskip("libtpu", reason="the TPU compiler is not installed")

SMALL = {
    "model_type": "qwen2",
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
SFT = """
from rmr1_jax.config import SftConfig, SftDataConfig
config = SftConfig(data=SftDataConfig(train="TRACES", max_length=1024), batch_size=32)
"""
GRPO = """
from rmr1_jax.config import GrpoConfig, PromptsConfig, RolloutConfig
config = GrpoConfig(
    data=PromptsConfig(train="PAIRS", max_prompt=256),
    rollout=RolloutConfig(samples=4, max_response=256, max_num_seqs=16),
    batch_size=32, mini_batch=16, pack_length=1024,
)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(SMALL))
    return directory


def plan(tmp_path: Path, recipe: str, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and plan.json."""
    (tmp_path / "recipe.py").write_text(recipe)
    status = main(
        [
            "--stage=plan",
            f"--config={tmp_path / 'recipe.py'}",
            f"--output={tmp_path / 'out'}",
            *options,
        ]
    )
    return status, json.loads((tmp_path / "out" / "plan.json").read_text())


def test_every_program_of_an_sft_recipe(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = plan(tmp_path, SFT, f"--model={model}", "--topology=v5e:2x2")
    assert status == 0 and found["fits"] and found["chips"] == 4
    assert set(found["programs"]) == {"import", "optimizer start", "update"}
    read = found["programs"]["import"]
    # The weights of a device, of which the update holds the moments, too.
    assert 0 < read["memory"]["peak"] < found["programs"]["update"]["memory"]["arguments"]
    update = found["programs"]["update"]
    assert 0 < update["memory"]["peak"] < found["hbm"]
    # Every weight is gathered, and every gradient sent back.
    assert "all-gather" in update["collectives"]
    assert {"reduce-scatter", "all-reduce"} & {*update["collectives"]}
    # More than the useful work is computed, since all layers are computed twice, but not by much.
    assert update["useful_flops"] < 4 * update["flops"] < 3 * update["useful_flops"]
    low, high = update["mfu"]
    assert 0 < low < high <= 1 and update["doubts"] == []
    fastest, slowest = update["seconds"]
    parts = [update[f"{part}_seconds"] for part in ("compute", "memory", "communication")]
    assert (fastest, slowest) == (max(parts), pytest.approx(sum(parts)))
    assert found["steps"] == 8753 // 32
    hours = [3600 * each for each in found["hours"]]
    assert hours == pytest.approx([found["steps"] * each for each in found["step_seconds"]])
    said = capsys.readouterr().out
    assert "chip-hours" in said and "reduce-scatter" in said
    assert "\N{HORIZONTAL ELLIPSIS}" not in said  # nothing is cut off, though this is no terminal


def test_every_program_of_a_grpo_recipe(tmp_path: Path, model: Path) -> None:
    options = (f"--model={model}", "--topology=v5e:2x2", "--mesh=fsdp=2,tensor=2")
    status, found = plan(tmp_path, GRPO, *options)
    assert status == 0
    assert set(found["programs"]) == {
        "import",
        "optimizer start",
        "reshard",
        "rollout",
        "ring growth",
        "log-probabilities",
        "reference log-probabilities",
        "update",
    }
    rollout = found["programs"]["rollout"]
    # While traces are sampled, the optimizer and the reference lie beside them.
    assert rollout["memory"]["resident"] > found["programs"]["update"]["memory"]["resident"]
    # Nothing is gathered in the decode loop: what is sent there is activations.
    assert "all-gather" not in rollout["collectives"] or (
        rollout["collectives"]["all-gather"]["in_decode_loop"] < 1e6
    )
    assert found["programs"]["update"]["runs_a_step"] == 2


def test_what_does_not_fit_says_by_how_much_and_what_does(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        f"--model={model}",
        "--topology=v5e:1x1",
        "--micro_batch_size=2048",
        "--batch_size=2048",
    )
    status, found = plan(tmp_path, SFT, *options)
    assert status == 1 and not found["fits"]
    assert found["programs"]["update"]["excess"] > 0 and found["hours"] is None
    assert found["proposal"]["fits"] and "--micro_batch_size" not in found["proposal"]["options"]
    said = capsys.readouterr().out
    assert "update does not fit: " in said and "this fits: --mesh=fsdp=-1 --remat=full" in said


@pytest.mark.nightly
def test_a_search_ranks_what_fits(tmp_path: Path, model: Path) -> None:
    status, found = plan(tmp_path, SFT, f"--model={model}", "--topology=v5e:1x1", "--search")
    seconds = [each["step_seconds"][1] for each in found["ranking"]]
    assert status == 0 and seconds == sorted(seconds)
    assert {each["options"] for each in found["ranking"]} == {
        "--mesh=fsdp=-1 --remat=full",
        "--mesh=fsdp=-1 --remat=attention",
        "--mesh=fsdp=-1 --remat=dots",
    }


def test_an_interrupted_search_leaves_what_was_found(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compile_all, done = Planner.plan, list[Plan]()

    def interrupted(self: Planner, recipe: Any, **options: Any) -> Plan:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(replace(done[0], recipe=recipe) if done else compile_all(self, recipe))
        return done[-1]

    monkeypatch.setattr(Planner, "plan", interrupted)
    status, found = plan(tmp_path, SFT, f"--model={model}", "--topology=v5e:1x1", "--search")
    assert status == 130 and found["programs"]["update"]["seconds"][0] > 0
    assert [each["options"] for each in found["ranking"]] == [
        "--mesh=fsdp=-1 --remat=full",
        "--mesh=fsdp=-1 --remat=dots",
    ]
    assert "Memory of a device" in capsys.readouterr().out


@pytest.mark.nightly
def test_several_slices_send_between_them_what_data_parallelism_needs(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (f"--model={model}", "--topology=v5e:2x2*2", "--mesh=data=2,fsdp=4")
    status, found = plan(tmp_path, SFT, *options)
    assert status == 0 and found["chips"] == 8 and found["topology"] == "v5e:2x2*2"
    outside = {
        (name, kind): sent["between_slices"]
        for name, program in found["programs"].items()
        for kind, sent in program["collectives"].items()
    }
    # Gradients of a device's quarter of the weights, those of the layers once a micro-batch, in
    # bf16 or fp32. Weights are gathered inside of each slice.
    gradients = outside.pop(("update", "all-reduce"))
    weights = count_parameters(load_config(model)) / 4
    assert 2 * weights < gradients < 4 * 4 * weights
    assert ("update", "all-gather") in outside and not any(outside.values())
    assert "between slices" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "options", "problem"),
    [
        (SFT, (), "does not say which model it is for"),
        (SFT, ("--topology=v9:2x2",), "v9 is unknown"),
        (SFT, ("--response_tokens=5000",), "more than the 1024"),
        (SFT, ("--nonsense=1",), "no option of this stage"),
        ("config = 3", (), "a plan is made of a training recipe"),
    ],
)
def test_what_cannot_be_planned_is_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recipe: str,
    options: tuple[str, ...],
    problem: str,
) -> None:
    (tmp_path / "recipe.py").write_text(recipe)
    status = main(["--stage=plan", f"--config={tmp_path / 'recipe.py'}", *options])
    said = capsys.readouterr().err
    assert status == 2 and problem in said and said.count("\n") == 1
