"""Stage 1 of RM-R1 for Qwen2.5-0.5B-Instruct, on one small accelerator.

Command:
    python -m rmr1_jax.main --stage=sft --config=configs/sft_qwen2_5_0_5b.py \
        --model=MODEL_DIR --data.train=TRACES

MODEL_DIR is Qwen/Qwen2.5-0.5B-Instruct; so small a model is given a higher learning rate, shorter
rows and a smaller batch than the published ones. TRACES is gaotang/RM-R1-Distill-SFT saved as JSON
lines or Parquet, or a directory made by --stage=synthesize. What is not set here is as published:
the defaults of SftConfig.

Hardware: v5e-1, where it fits by --stage=plan; not yet run. Meant for one GPU of 16 GB, too.
Expected result: none to compare with yet.
"""

from rmr1_jax.config import OptimizerConfig, SftConfig, SftDataConfig

architecture = "Qwen/Qwen2.5-0.5B-Instruct"
config = SftConfig(
    workdir="runs/sft_qwen2_5_0_5b",
    data=SftDataConfig(max_length=4096, pack_length=4096),
    batch_size=32,
    optimizer=OptimizerConfig(learning_rate=2e-5),
)
