"""A recipe on chips that are not here: what compiles, what fits, how long it may take."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import jax

from rmr1_jax.config import GrpoConfig, PlanConfig, SftConfig
from rmr1_jax.config.plan_config import PUBLISHED_PAIRS, PUBLISHED_TRACES
from rmr1_jax.errors import UserError
from rmr1_jax.models.lora import Lora
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.planning.analysis import Analysis, analyse, check_reader
from rmr1_jax.planning.chips import CHIPS, Chip, Topology, devices_of
from rmr1_jax.planning.compiled import Compiled, compile_ahead
from rmr1_jax.planning.recipe_programs import Lengths, programs_of
from rmr1_jax.rl.rollout import ACCELERATOR_SLOTS
from rmr1_jax.training.sharding_plan import make_sharding_plan

Recipe = SftConfig | GrpoConfig
UNKNOWN = (math.inf, math.inf)


@dataclass(frozen=True)
class Line:
    """One program of a plan."""

    compiled: Compiled
    analysis: Analysis | None
    """None where the compiler refused it."""

    @property
    def name(self) -> str:
        return self.compiled.planned.name


@dataclass(frozen=True)
class Plan:
    """A recipe on a topology, in one way of dividing it."""

    recipe: Recipe
    topology: Topology
    chip: Chip
    lines: tuple[Line, ...]
    steps: int
    """Of the whole run."""
    devices_a_chip: int
    misread: str = ""
    """What was counted wrong of a known product, if anything."""

    @property
    def fits(self) -> bool:
        return all(line.compiled.fits(self.chip.hbm) for line in self.lines)

    @property
    def devices(self) -> int:
        return self.topology.chips * self.devices_a_chip

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the plan has no times; empty where it has."""
        read = [(line.name, line.analysis) for line in self.lines if line.analysis]
        found = [f"{name}: {doubt}" for name, analysis in read for doubt in analysis.doubts]
        return (*((self.misread,) if self.misread else ()), *found)

    @property
    def step_seconds(self) -> tuple[float, float] | None:
        """Of all programs of one step, at best and at worst; without validation, and what the host
        does. None where the programs cannot be read with certainty."""
        if self.doubts:
            return None
        read = [(each.compiled.planned.runs, each.analysis) for each in self.lines if each.analysis]
        return (
            sum(runs * analysis.bounds.fastest for runs, analysis in read),
            sum(runs * analysis.bounds.slowest for runs, analysis in read),
        )

    @property
    def hours(self) -> tuple[float, float] | None:
        step = self.step_seconds
        return step and (self.steps * step[0] / 3600, self.steps * step[1] / 3600)

    @property
    def chip_hours(self) -> tuple[float, float] | None:
        hours = self.hours
        return hours and (hours[0] * self.topology.chips, hours[1] * self.topology.chips)


@dataclass(frozen=True)
class Planner:
    """What stays the same while meshes are tried."""

    config: PlanConfig
    model: ModelConfig
    topology: Topology
    lora: Lora | None
    on_program: Callable[[str], None] = lambda name: None

    @cached_property
    def devices(self) -> list[Any]:
        return devices_of(self.topology)

    def plan(self, recipe: Recipe, *, until_too_big: bool = False) -> Plan:
        """Compile and read all programs. Raises UserError for a mesh that nothing fits.

        With `until_too_big` it ends at the first program that no chip holds.
        """
        devices = self.devices
        sharding = make_sharding_plan(
            self.model, recipe.mesh, sequence_parallel=recipe.sequence_parallel, devices=devices
        )
        chip = CHIPS[self.topology.chip]
        # A TPU v4 has two devices a chip, others one.
        a_chip = len(devices) // self.topology.chips
        lengths = Lengths(*self.config.lengths(recipe))
        planned = programs_of(
            recipe,
            self.model,
            sharding,
            lengths,
            lora=self.lora,
            dtype=recipe.dtype or "bfloat16",
        )
        lines: list[Line] = []
        parts = self.topology.chips // self.topology.part
        within = len(devices) // parts if parts > 1 else None
        for each in planned:
            self.on_program(f"{each.name}, {division(recipe)}")
            compiled = compile_ahead(each)
            analysis = None
            if compiled.text:
                analysis = analyse(compiled, chip, len(devices), devices_per_slice=within)
            # The text of a program is large, and has been read.
            lines.append(Line(replace(compiled, text=""), analysis))
            if until_too_big and not compiled.fits(chip.hbm):
                break
        misread = check_reader(devices[0])
        steps = self._steps(recipe)
        return Plan(recipe, self.topology, chip, tuple(lines), steps, a_chip, misread)

    def _steps(self, recipe: Recipe) -> int:
        published = PUBLISHED_TRACES if isinstance(recipe, SftConfig) else PUBLISHED_PAIRS
        examples = self.config.examples or published
        steps = int(examples * recipe.epochs) // recipe.batch_size
        return min(max(steps, 1), recipe.max_steps or steps or 1)


def division(recipe: Recipe) -> str:
    """How a recipe is divided, as options."""
    options = [f"--mesh={recipe.mesh or 'fsdp=-1'}", f"--remat={recipe.remat}"]
    if recipe.sequence_parallel:
        options.append("--sequence_parallel=true")
    if recipe.micro_batch_size != 1:
        options.append(f"--micro_batch_size={recipe.micro_batch_size}")
    if isinstance(recipe, GrpoConfig) and recipe.rollout.max_num_seqs:
        options.append(f"--rollout.max_num_seqs={recipe.rollout.max_num_seqs}")
    return " ".join(options)


def variants(recipe: Recipe, model: ModelConfig, topology: Topology) -> list[Recipe]:
    """Other ways of dividing a recipe, from those that divide least: more devices along `tensor`
    (no more than heads of keys), rows split along it, and less kept for the backward pass."""
    outer = f"data={topology.slices}," if topology.slices > 1 else ""
    found = []
    tensor = 1
    while tensor <= min(model.num_kv_heads, topology.chips):
        for remat in ("dots", "attention", "full"):
            for split in (False, True) if tensor > 1 else (False,):
                mesh = f"{outer}fsdp=-1" + (f",tensor={tensor}" if tensor > 1 else "")
                found.append(replace(recipe, mesh=mesh, remat=remat, sequence_parallel=split))
        tensor *= 2
    return [each for each in found if division(each) != division(recipe)]


def smaller(recipe: Recipe) -> list[Recipe]:
    """The recipe with fewer rows at a time, or fewer slots."""
    found: list[Recipe] = []
    if recipe.micro_batch_size > 1:
        found.append(replace(recipe, micro_batch_size=1))
    if isinstance(recipe, GrpoConfig):
        slots = recipe.rollout.max_num_seqs or ACCELERATOR_SLOTS
        found += [
            replace(recipe, rollout=replace(recipe.rollout, max_num_seqs=slots // by))
            for by in (2, 4)
        ]
    return found


def propose(planner: Planner, candidates: Sequence[Recipe]) -> Plan | None:
    """The first that fits, compiled; None where none does."""
    for each in candidates:
        tried = _tried(planner, each)
        if tried is not None and tried.fits:
            return tried
    return None


def search(planner: Planner, first: Plan) -> Iterator[list[Plan]]:
    """Of a plan and all variants of its recipe those that fit, the fastest at worst first; so far,
    whenever one more does."""
    found: list[Plan] = []
    others = variants(first.recipe, planner.model, planner.topology)
    for plan in chain([first], (_tried(planner, each) for each in others)):
        if plan is not None and plan.fits:
            found = sorted([*found, plan], key=lambda each: (each.step_seconds or UNKNOWN)[1])
            yield found


def _tried(planner: Planner, recipe: Recipe) -> Plan | None:
    try:
        return planner.plan(recipe, until_too_big=True)
    # A mesh that the model does not divide by, or what the compiler refuses for some other reason
    # than memory: others may do.
    except (UserError, jax.errors.JaxRuntimeError):
        return None
