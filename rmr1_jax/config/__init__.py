"""Every configuration dataclass, one file a stage, and how a command line becomes one."""

from rmr1_jax.config.checks import nearest
from rmr1_jax.config.command_line import (
    load_recipe,
    option_types,
    parse_config,
    recipes,
    take_option,
)
from rmr1_jax.config.convert_config import ConvertConfig
from rmr1_jax.config.demo_config import DemoConfig
from rmr1_jax.config.evaluate_config import EvaluateConfig
from rmr1_jax.config.grpo_config import (
    AdvantageConfig,
    GrpoConfig,
    ObjectiveConfig,
    PromptsConfig,
    ReferenceConfig,
    RewardConfig,
    RolloutConfig,
    SamplesConfig,
)
from rmr1_jax.config.judge_config import JudgeConfig, JudgeOptions
from rmr1_jax.config.plan_config import PlanConfig
from rmr1_jax.config.prepare_config import PrepareConfig, Source
from rmr1_jax.config.sampling_config import Sampling, SamplingOptions
from rmr1_jax.config.sft_config import SftConfig, SftDataConfig
from rmr1_jax.config.stage_table import STAGES
from rmr1_jax.config.synthesize_config import SynthesizeConfig, TeacherConfig
from rmr1_jax.config.training_config import (
    CheckpointConfig,
    LoraConfig,
    OptimizerConfig,
    ValidationConfig,
)

__all__ = [
    "STAGES",
    "AdvantageConfig",
    "CheckpointConfig",
    "ConvertConfig",
    "DemoConfig",
    "EvaluateConfig",
    "GrpoConfig",
    "JudgeConfig",
    "JudgeOptions",
    "LoraConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PlanConfig",
    "PrepareConfig",
    "PromptsConfig",
    "ReferenceConfig",
    "RewardConfig",
    "RolloutConfig",
    "SamplesConfig",
    "Sampling",
    "SamplingOptions",
    "SftConfig",
    "SftDataConfig",
    "Source",
    "SynthesizeConfig",
    "TeacherConfig",
    "ValidationConfig",
    "load_recipe",
    "nearest",
    "option_types",
    "parse_config",
    "recipes",
    "take_option",
]
