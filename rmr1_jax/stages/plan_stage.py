"""`--stage=plan`: the programs of a recipe, compiled for chips that are not here."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console

from rmr1_jax.config import PlanConfig
from rmr1_jax.config.plan_config import MEAN_TOKENS
from rmr1_jax.errors import UserError
from rmr1_jax.io.atomic_write import atomic_write
from rmr1_jax.models.checkpoint import load_config
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.presets import known_config, toy_model
from rmr1_jax.models.weight_map import count_parameters
from rmr1_jax.planning.chips import parse_topology
from rmr1_jax.planning.plan import (
    Plan,
    Planner,
    Recipe,
    division,
    propose,
    search,
    smaller,
    variants,
)
from rmr1_jax.planning.plan_report import COLUMNS, ranking, sentences, tables, to_json
from rmr1_jax.toy_task.toy_recipes import toy_grpo
from rmr1_jax.training.training_run import lora_of


def run(config: PlanConfig) -> int:
    """Returns the exit status: 1 if something does not fit, else 0. Raises UserError."""
    config.check()
    jax.config.update("jax_platforms", "cpu")  # nothing is run, whatever devices are here
    recipe = config.recipe or toy_grpo()
    prompt, response = config.lengths(recipe)
    console, progress = Console(), Console(stderr=True)
    # A file has 80 columns for Rich; and a narrow terminal wraps what it would cut off.
    console.width = max(console.width, COLUMNS)
    status = progress.status("compiling")

    def on_program(name: str) -> None:
        status.update(f"compiling {name}")
        if not progress.is_terminal:
            progress.print(f"compiling {name}", highlight=False, soft_wrap=True)

    planner = make_planner(config, recipe, on_program)
    topology, model = planner.topology, planner.model
    console.print(
        f"{config.name} on {topology.name} ({topology.chips} chips): "
        f"{count_parameters(model) / 1e9:.2f} billion parameters, {division(recipe)}; "
        f"prompts of {prompt:,} and traces of {response:,} tokens on average are assumed",
        highlight=False,
        soft_wrap=True,
    )
    with status:
        plan = planner.plan(recipe)
    show(console, plan, config.price)
    # What follows may take hours, and be interrupted.
    written = write(config, plan, [], None)
    console.print(f"plan: {written}", highlight=False, soft_wrap=True)
    others: list[Plan] = []
    proposed = None
    with status:
        if config.search:
            for others in search(planner, plan):
                write(config, plan, others, None)
        if not plan.fits:
            # A search has tried the variants.
            ways = [] if config.search else variants(recipe, model, topology)
            proposed = others[0] if others else propose(planner, [*smaller(recipe), *ways])
    if config.search:
        console.print("\nWhat fits, the fastest at worst first:")
        console.print(ranking(others) if others else "nothing", highlight=False)
    if not plan.fits:
        advice = (
            f"this fits: {division(proposed.recipe)}"
            if proposed
            else "nothing that was tried fits; take more chips, or adapters (--lora.rank)"
        )
        console.print(f"\n{advice}", highlight=False, soft_wrap=True)
    write(config, plan, others, proposed)
    return 0 if plan.fits else 1


def make_planner(
    config: PlanConfig, recipe: Recipe, on_program: Callable[[str], None] = lambda name: None
) -> Planner:
    """What plans a recipe, and variants of it. Raises UserError."""
    topology = parse_topology(config.topology)
    return Planner(config, model_of(config, recipe), topology, lora_of(recipe), on_program)


def model_of(config: PlanConfig, recipe: Recipe) -> ModelConfig:
    """The architecture: of the recipe's model where it is here, else by its name."""
    if config.recipe is None:
        return toy_model()
    if recipe.model and Path(recipe.model).exists():
        return load_config(recipe.model)
    if config.architecture:
        return known_config(config.architecture)
    raise UserError(
        f"the recipe {config.name} does not say which model it is for; name a directory that "
        "holds its config.json with --model=DIRECTORY"
    )


def show(console: Console, plan: Plan, price: float) -> None:
    for table in tables(plan):
        console.print(table, "", highlight=False)
    for line in sentences(plan, price):
        console.print(line, highlight=False, soft_wrap=True)


def write(config: PlanConfig, plan: Plan, others: list[Plan], proposed: Plan | None) -> Path:
    """Everything that was found, as JSON."""
    place = config.output or f"plans/{config.name}-{plan.topology.name.replace(':', '-')}"
    found = to_json(plan, config.price) | {
        "recipe": config.name,
        "assumed": dict(zip(MEAN_TOKENS, config.lengths(plan.recipe), strict=True)),
        "ranking": [to_json(other, config.price) for other in others],
        "proposal": proposed and to_json(proposed, config.price),
    }
    return atomic_write(Path(place) / "plan.json", json.dumps(found, indent=2) + "\n")
