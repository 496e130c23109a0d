"""Stage 2 for Qwen2.5-0.5B-Instruct with adapters, on the one small TPU of a Colab.

Command:
    python -m rmr1_jax.main --stage=grpo --config=configs/grpo_qwen2_5_0_5b_lora.py \
        --model=MODEL_DIR --data.train=PAIRS

MODEL_DIR is Qwen/Qwen2.5-0.5B-Instruct. PAIRS are labelled pairs: a file, or a directory made by
--stage=prepare. Adapters of rank 16 are trained; the model under them, in bfloat16, is also the
reference, so that only one model is held.

Hardware: v5e-1, where it fits by --stage=plan; not yet run.
Expected result: none to compare with yet.
"""

from rmr1_jax.config import (
    GrpoConfig,
    LoraConfig,
    OptimizerConfig,
    PromptsConfig,
    RolloutConfig,
    ValidationConfig,
)

architecture = "Qwen/Qwen2.5-0.5B-Instruct"
config = GrpoConfig(
    workdir="runs/grpo_qwen2_5_0_5b_lora",
    data=PromptsConfig(max_prompt=1024),
    batch_size=32,
    mini_batch=16,
    rollout=RolloutConfig(max_response=512, max_num_seqs=128),
    lora=LoraConfig(rank=16),
    optimizer=OptimizerConfig(
        learning_rate=2e-5, beta2=0.999, weight_decay=0.0, warmup=0.0, final_lr_ratio=1.0
    ),
    validation=ValidationConfig(every=10, max_new_tokens=512),
)
