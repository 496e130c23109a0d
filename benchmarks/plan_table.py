"""The table of docs/plan.md: what the recipes of RM-R1 take on the topologies that they name.

    python -m benchmarks.plan_table [RECIPE ...]

Compiles each at full size, which takes minutes for each and needs libtpu; no chip.
"""

import runpy
import sys

from rmr1_jax.config import parse_config
from rmr1_jax.config.command_line import recipe_folder
from rmr1_jax.planning.chips import GIB
from rmr1_jax.planning.plan_report import interval, peak, to_json
from rmr1_jax.stages.plan_stage import make_planner

COLUMNS = (
    *("recipe", "topology", "GiB per device", "FLOPs over useful", "MFU of the update"),
    *("seconds per step", "chip-hours", "decode: ms", "bytes over ideal"),
)


def main(names: list[str]) -> None:
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for file in ("sft_rm_r1", "grpo_rm_r1"):
        models = runpy.run_path(str(recipe_folder() / f"{file}.py"))["MODELS"]
        for name, model in models.items():
            recipe = f"{file}:{name}"
            if not names or recipe in names:
                row = cells(recipe, model.topology)
                print(f"| {' | '.join(row)} |", flush=True)


def cells(recipe: str, topology: str) -> list[str]:
    """A row of the table."""
    config = parse_config("plan", [f"--config={recipe}", f"--topology={topology}"])
    plan = make_planner(config, config.recipe).plan(config.recipe)
    programs = to_json(plan)["programs"]
    update, decode = programs["update"], programs.get("rollout", {}).get("decode_step")
    milliseconds = decode and (1000 * decode["fastest"], 1000 * decode["slowest"])
    return [
        f"`{recipe}`",
        topology,
        f"{peak(plan) / GIB:.2f} of {plan.chip.hbm / GIB:.2f}",
        f"{update['flops'] * plan.devices / update['useful_flops']:.2f}",
        interval(update["mfu"], "{:.0%}"),
        interval(plan.step_seconds, "{:,.1f}"),
        interval(plan.chip_hours, "{:,.1f}"),
        interval(milliseconds, "{:.1f}"),
        f"{decode['bytes_over_ideal']:.2f}" if decode else "",
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
