"""What `--stage=plan` is asked for."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from rmr1_jax.config.checks import at_least
from rmr1_jax.config.grpo_config import GrpoConfig
from rmr1_jax.config.sft_config import SftConfig
from rmr1_jax.errors import UserError

# Rows of the published sets (spec §1.3), where a recipe is planned without its data.
PUBLISHED_TRACES, PUBLISHED_PAIRS = 8_753, 64_226
MEAN_TOKENS = {"prompt_tokens": 1300, "response_tokens": 700}


@dataclass(frozen=True)
class PlanConfig:
    """Compile every program of a training recipe for chips that are not here: what it takes of
    their memory, how long a step and the whole run may take, and what to change where it does not
    fit. Options of the recipe's own stage are accepted, too."""

    topology: str = "v5e:1x1"
    """The TPU chips, v5p:4x4x4, v5e-16 or v5e:4x4*2 (two slices), or the GPUs, h200:8 (h100 and
    b200 are known, too)."""
    output: str = ""
    """A directory for plan.json. Empty: plans/RECIPE-TOPOLOGY."""
    search: bool = False
    """Try other meshes and kinds of remat, and rank them."""
    prompt_tokens: int | None = None
    """Assumed mean length of prompts; a recipe is planned without its data. None: 1,300, or half
    of the longest that the recipe allows."""
    response_tokens: int | None = None
    """Assumed mean length of traces. None: 700, or half of the longest."""
    examples: int | None = None
    """Traces or pairs of the whole run. None: as many as the published set has."""
    price: float = 0.0
    """Price of a chip-hour, for the cost of the whole run. 0: leave the cost out."""
    recipe: Annotated[SftConfig | GrpoConfig | None, tyro.conf.Suppress] = None
    """What is planned. None: the toy task's reinforcement learning."""
    name: Annotated[str, tyro.conf.Suppress] = "grpo_toy_task"
    """Of the recipe."""
    architecture: Annotated[str, tyro.conf.Suppress] = ""
    """The checkpoint that the recipe is written for, by its name on the hub."""

    def check(self) -> None:
        """Raises UserError."""
        at_least("price", self.price, 0)
        for name in ("prompt_tokens", "response_tokens", "examples"):
            if (given := getattr(self, name)) is not None:
                at_least(name, given, 1)

    def lengths(self, recipe: SftConfig | GrpoConfig) -> tuple[int, int]:
        """Mean tokens of prompts and of traces. Raises UserError for more than a recipe allows."""
        if isinstance(recipe, GrpoConfig):
            longest = recipe.data.max_prompt, recipe.rollout.max_response
        else:
            longest = recipe.data.max_length, recipe.data.max_length
        found = []
        for name, usual, most in zip(MEAN_TOKENS, MEAN_TOKENS.values(), longest, strict=True):
            given = getattr(self, name)
            if given is not None and given > most:
                raise UserError(f"--{name}={given} is more than the {most} that the recipe allows")
            found.append(given or min(usual, max(most // 2, 1)))
        return found[0], found[1]
