"""A search for ways of dividing a recipe, some of which the compiler refuses."""

from typing import Any

import jax
import pytest

from rmr1_jax.config import PlanConfig, SftConfig
from rmr1_jax.models.presets import known_config
from rmr1_jax.planning.chips import CHIPS, parse_topology
from rmr1_jax.planning.plan import Plan, Planner, division, search, variants


def test_a_search_goes_on_after_a_variant_that_the_compiler_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topology, model = parse_topology("v5e:2x2"), known_config("Qwen/Qwen2.5-0.5B-Instruct")

    def compile_all(self: Planner, recipe: Any, **options: Any) -> Plan:
        if recipe.remat == "dots":
            raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed to compile a kernel")
        return Plan(recipe, topology, CHIPS["v5e"], (), steps=1, devices_a_chip=1)

    monkeypatch.setattr(Planner, "plan", compile_all)
    planner = Planner(PlanConfig(), model, topology, lora=None)
    first = planner.plan(SftConfig())
    others = variants(first.recipe, model, topology)
    refused = [each for each in others if each.remat == "dots"]
    *_, found = search(planner, first)
    assert refused and others[-1] not in refused, "something is refused before others are tried"
    assert {division(plan.recipe) for plan in found} == {
        division(recipe) for recipe in [first.recipe, *others] if recipe not in refused
    }
