"""Every configuration dataclass, one file a stage, and how a command line becomes one."""

from rmr1_jax.config.convert import ConvertConfig
from rmr1_jax.config.demo import DemoConfig
from rmr1_jax.config.evaluate import EvaluateConfig
from rmr1_jax.config.grpo import (
    AdvantageConfig,
    GrpoConfig,
    ObjectiveConfig,
    PromptsConfig,
    ReferenceConfig,
    RewardConfig,
    RolloutConfig,
    SamplesConfig,
)
from rmr1_jax.config.judge import JudgeConfig, JudgeOptions
from rmr1_jax.config.parsing import load_recipe, nearest, option_types, parse_config, take_option
from rmr1_jax.config.plan import PlanConfig
from rmr1_jax.config.prepare import PrepareConfig, Source
from rmr1_jax.config.sft import (
    CheckpointConfig,
    LoraConfig,
    OptimizerConfig,
    SftConfig,
    SftDataConfig,
    ValidationConfig,
)
from rmr1_jax.config.stages import STAGES
from rmr1_jax.config.synthesize import SynthesizeConfig, TeacherConfig

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
    "take_option",
]
