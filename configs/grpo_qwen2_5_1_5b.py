"""Stage 2 for Qwen2.5-1.5B-Instruct on one GPU of 80 GB or more.

Command:
    python -m rmr1_jax.main --stage=grpo --config=configs/grpo_qwen2_5_1_5b.py \
        --model=MODEL_DIR --data.train=PAIRS

MODEL_DIR is an SFT run of the same model, or Qwen/Qwen2.5-1.5B-Instruct itself. PAIRS are labelled
pairs: a file, or a directory made by --stage=prepare. The objective is as published; a step is an
eighth of the published one, and traces are shorter.

Hardware: v6e-4, where it fits by --stage=plan; not yet run. Meant for one H100 or H200, too.
Expected result: none to compare with yet.
"""

from rmr1_jax.config import (
    GrpoConfig,
    OptimizerConfig,
    PromptsConfig,
    ReferenceConfig,
    RolloutConfig,
    ValidationConfig,
)

architecture = "Qwen/Qwen2.5-1.5B-Instruct"
config = GrpoConfig(
    workdir="runs/grpo_qwen2_5_1_5b",
    data=PromptsConfig(max_prompt=3072),
    batch_size=128,
    mini_batch=64,
    rollout=RolloutConfig(max_response=2048, max_num_seqs=256),
    reference=ReferenceConfig(dtype="bfloat16"),
    optimizer=OptimizerConfig(
        learning_rate=1e-6, beta2=0.999, weight_decay=0.01, warmup=0.0, final_lr_ratio=1.0
    ),
    validation=ValidationConfig(every=10),
)
