"""What docs/pods.md says that runs cost is what docs/plan.md has from the planner."""

import pytest

from rmr1_jax.planning.topology import parse_topology
from tests.docs.commands import REPOSITORY
from tests.docs.tables import Row, number, rows

PODS, PLAN = (REPOSITORY / "docs" / name for name in ("pods.md", "plan.md"))
COSTS = rows(PODS, "recipe", "`--accelerator`", "hours", "chip-hours")
RUNS = {
    row["recipe"]: row
    for row in rows(PLAN, "recipe", "topology", "GiB a device", "MFU of the update", "the run")
    if "chip-hours" in row["the run"]
}


def chip_hours(run: str) -> float:
    """`68 steps of 8 s, 2.5 chip-hours` -> 2.5"""
    return number(run.partition(" s, ")[2])


def test_every_run_that_takes_chip_hours_has_its_cost() -> None:
    assert [row["recipe"] for row in COSTS] == [*RUNS]


@pytest.mark.parametrize("cost", COSTS, ids=lambda row: row["recipe"])
def test_it_is_that_of_the_plan(cost: Row) -> None:
    run = RUNS[cost["recipe"]]
    slice_ = parse_topology(cost["`--accelerator`"].strip("`"))
    assert slice_ == parse_topology(run["topology"])
    assert number(cost["chip-hours"]) == chip_hours(run["the run"])
    hours = number(cost["chip-hours"]) / slice_.chips
    rounded = 0.05 + 0.5 / slice_.chips  # to a tenth of an hour, and to a chip-hour
    assert number(cost["hours"]) == pytest.approx(hours, abs=rounded)


@pytest.mark.parametrize(
    ("model", "recipe", "topology"),
    [("7B", "sft_qwen2_5_7b", "v5e-16"), ("32B", "sft_qwen2_5_32b", "v5p-64")],
)
def test_full_rows_cost_what_the_plan_says(model: str, recipe: str, topology: str) -> None:
    full = ("recipe", "topology", "options", "GiB a device", "MFU of the update", "the run")
    (run,) = (
        row
        for row in rows(PLAN, *full)
        if (row["recipe"], row["topology"]) == (f"`{recipe}`", topology)
    )
    _, _, said = PODS.read_text(encoding="utf-8").partition("Where every trace fills a row")
    assert number(said.partition(f"of {model} ")[2]) == chip_hours(run["the run"])
