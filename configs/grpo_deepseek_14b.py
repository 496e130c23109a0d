"""Stage 2 of RM-R1 for DeepSeek-R1-Distill-Qwen-14B, with the published numbers.

Command:
    python -m rmr1_jax.main --stage=grpo --config=configs/grpo_deepseek_14b.py \
        --model=MODEL_DIR --data.train=PAIRS

MODEL_DIR is deepseek-ai/DeepSeek-R1-Distill-Qwen-14B; reasoning models skip stage 1.
PAIRS is gaotang/RM-R1-Reasoning-RLVR saved as JSON lines or Parquet, or a directory made by
--stage=prepare; 71 steps. Every trace weighs the same in the loss, as its
script has it (micro-batches of 1).
What is not set here is as published: the defaults of GrpoConfig.

Hardware: v5p-32, where it fits by --stage=plan; not yet run. Meant for 16 GPUs of 80 GB, too.
Expected result: that of the released RM-R1-DeepSeek-Distilled-Qwen-14B, within its noise.
"""

from rmr1_jax.config import GrpoConfig, OptimizerConfig, RolloutConfig

architecture = "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"
config = GrpoConfig(
    workdir="runs/grpo_deepseek_14b",
    optimizer=OptimizerConfig(
        learning_rate=1e-6, beta2=0.999, weight_decay=0.01, warmup=0.0, final_lr_ratio=1.0
    ),
    rollout=RolloutConfig(max_num_seqs=128),
    mesh="fsdp=-1,tensor=4",
    sequence_parallel=True,
)
