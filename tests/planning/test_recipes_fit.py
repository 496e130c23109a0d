"""Every training recipe compiles, and fits, on the chips that its docstring names first."""

import ast
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.config import parse_config
from rmr1_jax.config.plan import PlanConfig
from rmr1_jax.errors import UserError
from rmr1_jax.planning.plan import Plan, Planner
from rmr1_jax.planning.report import sentences
from rmr1_jax.planning.topology import devices_of, parse_topology
from rmr1_jax.stages.plan import model_of
from rmr1_jax.stages.training_run import lora_of

REPOSITORY = Path(__file__).resolve().parents[2]
SELF_MADE = ("sft_self_made", "grpo_self_made")  # on a CPU
RECIPES = [
    path
    for path in sorted((REPOSITORY / "configs").glob("*.py"))
    if path.stem.startswith(("sft_", "grpo_")) and path.stem not in SELF_MADE
]


def topology_of(recipe: Path) -> str:
    """`Hardware: v5p-64 (...)` -> v5p-64"""
    docstring = ast.get_docstring(ast.parse(recipe.read_text())) or ""
    found = re.search(r"^Hardware: (v[0-9][a-z]*-[0-9]+)\b", docstring, re.MULTILINE)
    assert found, f"{recipe.name}: its docstring names no TPU topology behind 'Hardware:'"
    return found[1]


def planned(recipe: Path) -> PlanConfig:
    config = parse_config("plan", [f"--config={recipe}", f"--topology={topology_of(recipe)}"])
    assert isinstance(config, PlanConfig)
    return config


def alike() -> list[Any]:
    """Recipes whose programs are the same but for the learning rate, a constant in them."""
    groups: dict[Any, list[Path]] = defaultdict(list)
    for path in RECIPES:
        config = planned(path)
        recipe = config.recipe
        assert recipe is not None
        optimizer = replace(recipe.optimizer, learning_rate=0.0)
        same = replace(recipe, workdir="", optimizer=optimizer)
        groups[config.topology, model_of(config, recipe), same].append(path)
    return [
        pytest.param(paths[0], id="-".join(path.stem for path in paths))
        for paths in groups.values()
    ]


def plan(recipe: Path) -> Plan:
    config = planned(recipe)
    assert config.recipe is not None
    topology = parse_topology(config.topology)
    try:
        devices_of(topology)
    except UserError as error:
        if "not installed" in str(error):
            pytest.skip(str(error))
        raise
    model = model_of(config, config.recipe)
    return Planner(config, model, topology, lora_of(config.recipe)).plan(config.recipe)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", alike())
def test_a_recipe_fits_where_it_says(recipe: Path) -> None:
    found = plan(recipe)
    assert found.fits, sentences(found, 0.0)
    for line in found.lines:
        decode = line.compiled.planned.decode
        if decode is None:
            continue
        assert line.analysis is not None and line.analysis.decode is not None
        assert line.analysis.decode.cache_copies == 0
        gathered = line.analysis.transfers.get("all-gather")
        # No cache and no layer's weights, only what a step has computed.
        assert gathered is None or gathered.in_decode_loop < decode.cache_bytes / 2
