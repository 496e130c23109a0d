"""Every training recipe compiles, and fits, on the chips that its docstring names first; it takes
what docs/plan.md states."""

import ast
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.config import parse_config
from rmr1_jax.config.plan_config import PlanConfig
from rmr1_jax.errors import UserError
from rmr1_jax.planning.chips import GIB
from rmr1_jax.planning.compiled import Compiled, compile_ahead
from rmr1_jax.planning.plan import Plan, Planner
from rmr1_jax.planning.plan_report import peak, sentences, to_json
from rmr1_jax.planning.recipe_programs import Planned
from rmr1_jax.planning.topology import devices_of, parse_topology
from rmr1_jax.stages.plan_stage import model_of
from rmr1_jax.training.training_run import lora_of
from tests.docs.tables import Row, number, rows

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "plan.md"
RUN = ("recipe", "topology", "GiB a device", "MFU of the update", "the run")
FULL_ROWS = ("recipe", "topology", "options", "GiB a device", "MFU of the update", "the run")
DECODE = ("recipe", "topology", "ms", "bytes over ideal", "time over ideal")
ELSEWHERE = ("recipe", "another topology", "GiB a device", "MFU of the update", "the run")
SELF_MADE = ("sft_toy_task", "grpo_toy_task")  # on a CPU
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


def planned(recipe: Path, topology: str = "") -> PlanConfig:
    topology = topology or topology_of(recipe)
    config = parse_config("plan", [f"--config={recipe}", f"--topology={topology}"])
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


def plan(config: PlanConfig) -> Plan:
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


@pytest.fixture
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later plans read the programs of the first again: other lengths do not change them, but for
    the number of micro-batches, over which they loop."""
    kept: dict[str, Compiled] = {}

    def compile_once(planned: Planned) -> Compiled:
        if planned.name not in kept:
            kept[planned.name] = compile_ahead(planned)
        return replace(kept[planned.name], planned=planned)

    monkeypatch.setattr("rmr1_jax.planning.plan.compile_ahead", compile_once)


def stated(recipe: str, *columns: str) -> list[Row]:
    """What docs/plan.md says of a recipe, in the tables with these columns."""
    return [row for row in rows(PAGE, *columns) if f"`{recipe}`" in row["recipe"]]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", alike())
def test_a_recipe_fits_where_it_says_and_takes_what_is_stated(
    recipe: Path, compiled_once: None
) -> None:
    config = planned(recipe)
    found = plan(config)
    assert found.fits, sentences(found, 0.0)
    (row,) = stated(recipe.stem, *RUN)
    assert row["topology"] == config.topology
    check(found, row)
    check_decoding(found, recipe, config.topology)
    for row in stated(recipe.stem, *FULL_ROWS):
        if (row["topology"], row["options"]) == (config.topology, "its own"):
            check(plan(replace(config, prompt_tokens=4096, response_tokens=8192)), row)


@pytest.mark.slow
def test_7b_fits_its_other_topology_and_takes_what_is_stated_for_it() -> None:
    recipe = REPOSITORY / "configs" / "grpo_qwen2_5_7b.py"
    (row,) = stated(recipe.stem, *ELSEWHERE)
    config = planned(recipe, row["another topology"])
    found = plan(config)
    check(found, row)
    check_decoding(found, recipe, config.topology)


def check_decoding(found: Plan, recipe: Path, topology: str) -> None:
    """Nothing of a cache moves in the decode loop, and it takes no more than is stated."""
    for line in found.lines:
        decode = line.compiled.planned.decode
        if decode is None:
            continue
        assert line.analysis is not None and line.analysis.decode is not None
        assert line.analysis.decode.cache_copies == 0
        gathered = line.analysis.transfers.get("all-gather")
        # No cache and no layer's weights, only what a step has computed.
        assert gathered is None or gathered.in_decode_loop < decode.cache_bytes / 2
        row = decode_row(recipe.stem, topology)
        assert line.analysis.decode.bytes_over_ideal < number(row["bytes over ideal"]) + 0.005
        assert line.analysis.decode.seconds_over_roofline < number(row["time over ideal"]) + 0.005


def decode_row(recipe: str, topology: str) -> Row:
    (row,) = (row for row in stated(recipe, *DECODE) if row["topology"] == topology)
    return row


def check(found: Plan, row: Row) -> None:
    """No more memory and time than a row states, and no less MFU, to its last place."""
    update = to_json(found)["programs"]["update"]
    assert update["mfu"] > number(row["MFU of the update"]) / 100 - 0.01
    assert peak(found) / GIB < number(row["GiB a device"]) + 0.005
    steps, _, rest = row["the run"].partition(" steps of ")
    assert (found.steps, found.fits) == (number(steps), True)
    assert found.step_seconds < number(rest) + 0.5
    if "chip-hours" in rest:
        assert found.chip_hours < number(rest.partition(", ")[2]) + 0.5


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_what_a_recipe_takes_is_stated_for_its_topology(recipe: Path) -> None:
    assert [row["topology"] for row in stated(recipe.stem, *RUN)] == [topology_of(recipe)]
    decoding = recipe.stem.startswith("grpo_")
    topologies = [row["topology"] for row in stated(recipe.stem, *DECODE)]
    assert topologies.count(topology_of(recipe)) == decoding


# Figures that are stated are no better than what is compiled (above), so these are reached.
@pytest.mark.parametrize(
    ("recipe", "topology"), [("sft_qwen2_5_7b", "v5e-16"), ("sft_qwen2_5_32b", "v5p-64")]
)
def test_supervised_fine_tuning_reaches_55_percent(recipe: str, topology: str) -> None:
    (row,) = (row for row in stated(recipe, *FULL_ROWS) if row["topology"] == topology)
    assert row["options"] == "its own" and number(row["MFU of the update"]) >= 55


@pytest.mark.parametrize(
    ("recipe", "topology"),
    [
        ("grpo_qwen2_5_1_5b", "v6e-4"),
        ("grpo_qwen2_5_7b", "v5e-16"),
        ("grpo_qwen2_5_7b", "v6e-8"),
        ("grpo_qwen2_5_32b", "v5p-64"),
    ],
)
def test_a_decode_step_moves_at_most_1_15_times_the_ideal_bytes(recipe: str, topology: str) -> None:
    assert number(decode_row(recipe, topology)["bytes over ideal"]) <= 1.15


def test_a_decode_step_of_7b_takes_at_most_1_3_times_the_ideal_time_on_v5e() -> None:
    assert number(decode_row("grpo_qwen2_5_7b", "v5e-16")["time over ideal"]) <= 1.3
