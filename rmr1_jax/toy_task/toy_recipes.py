"""What the stages do when nothing is asked for: the toy task, sized for two CPU cores."""

from rmr1_jax.config.checks import GRPO, PAIRS, SFT, TRACES
from rmr1_jax.config.evaluate_config import EvaluateConfig
from rmr1_jax.config.grpo_config import (
    AdvantageConfig,
    GrpoConfig,
    PromptsConfig,
    RolloutConfig,
    SamplesConfig,
)
from rmr1_jax.config.prepare_config import PrepareConfig
from rmr1_jax.config.sft_config import SftConfig, SftDataConfig
from rmr1_jax.config.synthesize_config import SynthesizeConfig, TeacherConfig
from rmr1_jax.config.training_config import CheckpointConfig, OptimizerConfig, ValidationConfig

# Verdicts can be verified, reasons cannot: traces that guess right stay. A model that imitates them
# guesses, too; reinforcement learning finds out that solving pays.
HASTE = 0.6


def toy_prepare() -> PrepareConfig:
    """Pairs of the toy task; most of them are for distillation, since traces cost nothing."""
    return PrepareConfig(
        output=PAIRS, input="toy_task", toy_task=24_000, distillation=0.75, near_duplicates=0
    )


def toy_synthesize() -> SynthesizeConfig:
    """Traces by the programmatic teacher: right nine times of ten, then shown the verdict."""
    return SynthesizeConfig(
        input=PAIRS,
        output=TRACES,
        teacher1=TeacherConfig(kind="program", accuracy=0.9, haste=HASTE),
        teacher2=TeacherConfig(kind="program", accuracy=1.0, haste=HASTE),
    )


def toy_sft() -> SftConfig:
    """From random weights to a judge of the toy task; a few minutes."""
    return SftConfig(
        workdir=SFT,
        data=SftDataConfig(train=TRACES, max_length=128, held_out=200),
        batch_size=32,
        micro_batch_size=16,
        max_steps=1200,
        epochs=3.0,
        optimizer=OptimizerConfig(learning_rate=3e-3, beta2=0.98, warmup=0.05),
        remat="none",
        checkpoint=CheckpointConfig(every=200),
        validation=ValidationConfig(every=200, judge=PAIRS, pairs=200, max_new_tokens=64),
    )


def toy_grpo() -> GrpoConfig:
    """From the SFT run, which guesses about sums, to a judge that solves; some minutes."""
    return GrpoConfig(
        workdir=GRPO,
        model=SFT,
        data=PromptsConfig(train=PAIRS, max_prompt=128, both_orders=True),
        batch_size=64,
        mini_batch=64,
        rollout=RolloutConfig(samples=8, max_response=64, max_num_seqs=256),
        # Nine groups of ten are soon judged right eight times of eight.
        advantage=AdvantageConfig(dynamic_sampling=True),
        epochs=10.0,
        max_steps=150,
        optimizer=OptimizerConfig(
            learning_rate=3e-4, beta2=0.99, weight_decay=0.01, warmup=0.0, final_lr_ratio=0.1
        ),
        remat="none",
        checkpoint=CheckpointConfig(every=20),
        validation=ValidationConfig(every=20, judge=PAIRS, pairs=200, max_new_tokens=64),
        samples=SamplesConfig(every=20),
    )


def toy_evaluate() -> EvaluateConfig:
    """The judge of the GRPO run on held-out pairs, in both orders; a minute."""
    return EvaluateConfig(
        model=GRPO,
        output="runs/evaluate_toy_task",
        benchmarks="preferences",
        preferences=PAIRS,
        order="both",
        limit=200,
        max_new_tokens=64,
    )
