"""Stage 1 of RM-R1 for Qwen3-8B, with the 7B model's numbers.

Command:
    python -m rmr1_jax.main --stage=sft --config=configs/sft_qwen3_8b.py \
        --model=MODEL_DIR --data.train=TRACES

MODEL_DIR is Qwen/Qwen3-8B; not among the published models. TRACES is gaotang/RM-R1-Distill-SFT
saved as JSON lines or Parquet, or a directory made by --stage=synthesize. What is not set here is
as published: the defaults of SftConfig.

Hardware: v5e-16, where it fits by --stage=plan; not yet run. Meant for 8 GPUs of 80 GB, too.
Expected result: none to compare with.
"""

from rmr1_jax.config import OptimizerConfig, SftConfig, SftDataConfig

architecture = "Qwen/Qwen3-8B"
config = SftConfig(
    workdir="runs/sft_qwen3_8b",
    data=SftDataConfig(pack_length=12288),
    optimizer=OptimizerConfig(learning_rate=5e-6),
    mesh="fsdp=-1,tensor=2",
)
