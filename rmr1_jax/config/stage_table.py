"""The stages by name, and what configures each."""

from rmr1_jax.config.convert_config import ConvertConfig
from rmr1_jax.config.demo_config import DemoConfig
from rmr1_jax.config.evaluate_config import EvaluateConfig
from rmr1_jax.config.grpo_config import GrpoConfig
from rmr1_jax.config.judge_config import JudgeConfig
from rmr1_jax.config.plan_config import PlanConfig
from rmr1_jax.config.prepare_config import PrepareConfig
from rmr1_jax.config.sft_config import SftConfig
from rmr1_jax.config.synthesize_config import SynthesizeConfig

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
