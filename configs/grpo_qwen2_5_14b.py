"""Stage 2 of RM-R1 for Qwen2.5-14B-Instruct, with the published numbers.

Command:
    python -m rmr1_jax.main --stage=grpo --config=configs/grpo_qwen2_5_14b.py \
        --model=MODEL_DIR --data.train=PAIRS

MODEL_DIR is the SFT run of configs/sft_qwen2_5_14b.py, or its export.
PAIRS is gaotang/RM-R1-after-Distill-RLVR saved as JSON lines or Parquet, or a directory made by
--stage=prepare; 62 steps. Every trace weighs the same in the loss, as its
script has it (micro-batches of 1).
The script of the original names the data of the reasoning models here, without the rubric prompt
(a known slip); the released checkpoint writes rubrics, so the distilled models' data are meant.
What is not set here is as published: the defaults of GrpoConfig.

Hardware: v5p-32, where it fits by --stage=plan; not yet run. Meant for 16 GPUs of 80 GB, too.
Expected result: that of the released RM-R1-Qwen2.5-Instruct-14B, within its noise.
"""

from rmr1_jax.config import GrpoConfig, OptimizerConfig, RolloutConfig

architecture = "Qwen/Qwen2.5-14B-Instruct"
config = GrpoConfig(
    workdir="runs/grpo_qwen2_5_14b",
    optimizer=OptimizerConfig(
        learning_rate=7e-7, beta2=0.999, weight_decay=0.01, warmup=0.0, final_lr_ratio=1.0
    ),
    rollout=RolloutConfig(max_num_seqs=128),
    mesh="fsdp=-1,tensor=4",
    sequence_parallel=True,
)
