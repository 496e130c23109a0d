"""The stages by name, and what configures each."""

from rmr1_jax.config.convert import ConvertConfig
from rmr1_jax.config.demo import DemoConfig
from rmr1_jax.config.evaluate import EvaluateConfig
from rmr1_jax.config.grpo import GrpoConfig
from rmr1_jax.config.judge import JudgeConfig
from rmr1_jax.config.plan import PlanConfig
from rmr1_jax.config.prepare import PrepareConfig
from rmr1_jax.config.sft import SftConfig
from rmr1_jax.config.synthesize import SynthesizeConfig

STAGES: dict[str, type] = {
    "prepare": PrepareConfig,
    "synthesize": SynthesizeConfig,
    "sft": SftConfig,
    "grpo": GrpoConfig,
    "judge": JudgeConfig,
    "evaluate": EvaluateConfig,
    "convert": ConvertConfig,
    "plan": PlanConfig,
    "demo": DemoConfig,
}
