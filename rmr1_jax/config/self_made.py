"""What the stages do when nothing is asked for: the self-made task, sized for two CPU cores."""

from rmr1_jax.config.prepare import PrepareConfig
from rmr1_jax.config.sft import (
    CheckpointConfig,
    OptimizerConfig,
    SftConfig,
    SftDataConfig,
    ValidationConfig,
)
from rmr1_jax.config.synthesize import SynthesizeConfig


def self_made_sft() -> SftConfig:
    """From random weights to a judge of the self-made task; a few minutes."""
    return SftConfig(
        workdir="runs/sft_self_made",
        data=SftDataConfig(
            train=SynthesizeConfig().output, max_length=512, held_out=200, row_length=256
        ),
        batch_size=64,
        micro_rows=8,
        epochs=4.0,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup=0.05),
        remat="none",
        checkpoint=CheckpointConfig(every=200),
        validation=ValidationConfig(
            every=200, judge=PrepareConfig().output, pairs=100, max_new_tokens=160
        ),
    )
