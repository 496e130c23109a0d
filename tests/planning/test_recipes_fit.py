"""Every training recipe compiles, and fits, on the chips that its docstring names first."""

import ast
import hashlib
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.config import parse_config
from rmr1_jax.config.plan import PlanConfig
from rmr1_jax.errors import UserError
from rmr1_jax.planning import plan as planning
from rmr1_jax.planning.compiled import Compiled, compile_ahead
from rmr1_jax.planning.plan import Plan, Planner
from rmr1_jax.planning.programs import Planned
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


def alike() -> list[Any]:
    """Recipes for models of one size on one topology share programs: each is compiled once."""
    groups: dict[tuple[Any, ...], list[Path]] = defaultdict(list)
    for recipe in RECIPES:
        config = planned(recipe)
        assert config.recipe is not None
        model = model_of(config, config.recipe)
        stage = recipe.stem.partition("_")[0]
        groups[stage, topology_of(recipe), model.hidden_size, model.num_layers].append(recipe)
    return [
        pytest.param(recipes, id="-".join(path.stem for path in recipes))
        for recipes in groups.values()
    ]


def planned(recipe: Path) -> PlanConfig:
    config = parse_config("plan", [f"--config={recipe}", f"--topology={topology_of(recipe)}"])
    assert isinstance(config, PlanConfig)
    return config


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile programs that are the same to the letter once."""
    known: dict[tuple[str, int], Compiled] = {}

    def compiled(program: Planned) -> Compiled:
        text = program.lower().as_text()
        key = hashlib.sha256(text.encode()).hexdigest(), program.resident
        if key not in known:
            known[key] = compile_ahead(program)
        return replace(known[key], planned=program)

    monkeypatch.setattr(planning, "compile_ahead", compiled)


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
@pytest.mark.usefixtures("once")
@pytest.mark.parametrize("recipes", alike())
def test_a_recipe_fits_where_it_says(recipes: list[Path]) -> None:
    for recipe in recipes:
        found = plan(recipe)
        assert found.fits, (recipe.name, sentences(found, 0.0))
        for line in found.lines:
            if line.analysis is None or line.analysis.decode is None:
                continue
            assert line.analysis.decode.cache_copies == 0, recipe.name
            gathered = line.analysis.transfers.get("all-gather")
            # Neither weights nor caches: a layer has more than this of both.
            assert gathered is None or gathered.in_decode_loop < 2**20, recipe.name
