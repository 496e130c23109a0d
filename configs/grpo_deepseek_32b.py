"""Stage 2 of RM-R1 for DeepSeek-R1-Distill-Qwen-32B, with the published numbers.

Command:
    python -m rmr1_jax.main --stage=grpo --config=configs/grpo_deepseek_32b.py \
        --model=MODEL_DIR --data.train=PAIRS

MODEL_DIR is deepseek-ai/DeepSeek-R1-Distill-Qwen-32B; reasoning models skip stage 1.
PAIRS is gaotang/RM-R1-Reasoning-RLVR saved as JSON lines or Parquet, or a directory made by
--stage=prepare; 71 steps. Every trace weighs the same in the loss, as its
script has it (micro-batches of 1).
What is not set here is as published: the defaults of GrpoConfig.

Hardware: v5p-64, where it fits by --stage=plan; not yet run. Meant for 32 GPUs of 80 GB, too.
Expected result: that of the released RM-R1-DeepSeek-Distilled-Qwen-32B, within its noise.
"""

from rmr1_jax.config import GrpoConfig, OptimizerConfig, RolloutConfig

architecture = "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"
config = GrpoConfig(
    workdir="runs/grpo_deepseek_32b",
    optimizer=OptimizerConfig(
        learning_rate=8e-7, beta2=0.999, weight_decay=0.01, warmup=0.0, final_lr_ratio=1.0
    ),
    rollout=RolloutConfig(max_num_seqs=128),
    mesh="fsdp=-1,tensor=8",
    sequence_parallel=True,
)
