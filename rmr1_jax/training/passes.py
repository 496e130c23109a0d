"""Both stages' objectives on a placement: what a run compiles, and what a plan compiles ahead."""

from functools import partial
from typing import Any, Literal, cast

import jax
from jax.typing import DTypeLike

from rmr1_jax.config import GrpoConfig, SftConfig
from rmr1_jax.data.groups import LEAST_ROW
from rmr1_jax.models.config import ModelConfig
from rmr1_jax.training.grpo import Settings, grpo, token_logprobs
from rmr1_jax.training.nll import nll
from rmr1_jax.training.placement import Placement
from rmr1_jax.training.step import Objective, batch_logprobs


def sft_objective(config: SftConfig, placement: Placement) -> Objective:
    """The negative log-likelihood."""
    return partial(nll, **_options(config, placement))


def grpo_objective(config: GrpoConfig, placement: Placement) -> Objective:
    """The clipped policy gradient."""
    return partial(grpo, settings=settings_of(config), **_options(config, placement))


def logprob_pass(
    config: GrpoConfig, model: ModelConfig, placement: Placement, dtype: DTypeLike
) -> Any:
    """The compiled (params, batch, base) -> log p of each target; of old policy and reference."""
    return jax.jit(
        partial(
            batch_logprobs,
            config=model,
            dtype=dtype,
            token_logprobs=partial(token_logprobs, **_options(config, placement)),
        ),
        out_shardings=placement.batch,
        compiler_options=placement.compiler_options,
    )


def settings_of(config: GrpoConfig) -> Settings:
    """The objective's settings."""
    objective = config.objective
    return Settings(
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        kl=objective.kl,
        entropy=objective.entropy,
        ratio=cast(Literal["token", "sequence"], objective.ratio),
        correction_cap=objective.correction_cap,
        on_policy=config.updates == 1,
    )


def longest_row(config: GrpoConfig) -> int:
    """Tokens of a packed row of groups, at the most."""
    longest = config.data.max_prompt + config.rollout.max_response
    return config.row_length or max(longest, 2 * LEAST_ROW)


def _options(config: SftConfig | GrpoConfig, placement: Placement) -> dict[str, Any]:
    return {
        "remat": config.remat,
        "constrain": placement.constrain,
        "attention": placement.attention,
        "batch_shards": placement.row_groups,
    }
