"""The recipes of RM-R1 on the chips that their tables name.

Two layers of a model show what sixty-four do of the decode loop: what it copies, gathers and reads.
Whether all of a recipe fits is compiled at full size, which takes minutes for each.
"""

import runpy
from dataclasses import replace

import pytest

from rmr1_jax.config import PlanConfig, parse_config
from rmr1_jax.config.command_line import recipe_folder
from rmr1_jax.planning.plan import Plan
from rmr1_jax.planning.plan_report import sentences
from rmr1_jax.stages.plan_stage import make_planner
from tests.topologies import devices_or_skip

RECIPES = {
    f"{file}:{name}": model.topology
    for file in ("sft_rm_r1", "grpo_rm_r1")
    for name, model in runpy.run_path(str(recipe_folder() / f"{file}.py"))["MODELS"].items()
}
# The same programs as another recipe's, but for a learning rate.
TWINS = ("grpo_rm_r1:deepseek-7b", "grpo_rm_r1:deepseek-14b", "grpo_rm_r1:deepseek-32b")


def plan(recipe: str, topology: str, *, layers: int | None = None) -> Plan:
    config = parse_config("plan", [f"--config={recipe}", f"--topology={topology}"])
    assert isinstance(config, PlanConfig) and config.recipe is not None
    devices_or_skip(topology)
    planner = make_planner(config, config.recipe)
    if layers:
        planner = replace(planner, model=replace(planner.model, num_layers=layers))
    return planner.plan(config.recipe)


def check_decoding(found: Plan, bytes_over_ideal: float) -> None:
    """Nothing of a cache is copied or gathered in the decode loop, and little is read twice."""
    for line in found.lines:
        wanted = line.compiled.planned.decode
        if wanted is None:
            continue
        assert line.analysis is not None and line.analysis.decode is not None
        assert line.analysis.decode.cache_copies == 0
        gathered = line.analysis.transfers.get("all-gather")
        # No cache and no layer's weights, only what a step has computed.
        assert gathered is None or gathered.in_decode_loop < wanted.cache_bytes / 2
        assert line.analysis.decode.bytes_over_ideal <= bytes_over_ideal


@pytest.mark.nightly
def test_two_layers_of_grpo_decode_without_copies_and_are_read_without_a_doubt() -> None:
    found = plan("grpo_rm_r1:qwen-7b", "v6e-8", layers=2)
    assert found.fits and found.doubts == ()
    check_decoding(found, bytes_over_ideal=1.15)


@pytest.mark.nightly
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in TWINS])
def test_a_recipe_fits_on_the_topology_of_its_table(recipe: str) -> None:
    found = plan(recipe, RECIPES[recipe])
    assert found.fits, sentences(found, 0.0)
    assert found.doubts == ()
    # Of weights and live keys and values read once. Wide and small models miss the target of 1.15.
    missed = {"grpo_rm_r1:qwen-14b": 1.2, "grpo_rm_r1:qwen-0.5b-lora": 1.51}
    check_decoding(found, missed.get(recipe, 1.15))
