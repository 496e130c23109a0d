"""Stage 2 of RM-R1 for Qwen2.5-7B-Instruct, with the published numbers.

Command:
    python -m rmr1_jax.main --stage=grpo --config=configs/grpo_qwen2_5_7b.py \
        --model=MODEL_DIR --data.train=PAIRS

MODEL_DIR is the SFT run of configs/sft_qwen2_5_7b.py, or its export.
PAIRS is gaotang/RM-R1-after-Distill-RLVR saved as JSON lines or Parquet, or a directory made by
--stage=prepare; 62 steps. The loss is a mean over pools of 4 traces, as its
script has it (micro-batches of 4).
What is not set here is as published: the defaults of GrpoConfig.

Hardware: v6e-8, where it fits by --stage=plan; not yet run. Meant for 8 GPUs of 80 GB, too.
Expected result: that of the released RM-R1-Qwen2.5-Instruct-7B, within its noise.
"""

from rmr1_jax.config import GrpoConfig, ObjectiveConfig, OptimizerConfig, RolloutConfig

architecture = "Qwen/Qwen2.5-7B-Instruct"
config = GrpoConfig(
    workdir="runs/grpo_qwen2_5_7b",
    objective=ObjectiveConfig(reduction="pooled_mean", pool=4),
    optimizer=OptimizerConfig(
        learning_rate=1e-6, beta2=0.999, weight_decay=0.01, warmup=0.0, final_lr_ratio=1.0
    ),
    rollout=RolloutConfig(max_num_seqs=128),
    mesh="fsdp=-1,tensor=4",
    sequence_parallel=True,
)
