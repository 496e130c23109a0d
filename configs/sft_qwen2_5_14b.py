"""Stage 1 of RM-R1 for Qwen2.5-14B-Instruct, with the paper's learning rate.

Command:
    python -m rmr1_jax.main --stage=sft --config=configs/sft_qwen2_5_14b.py \
        --model=MODEL_DIR --data.train=TRACES

MODEL_DIR is Qwen/Qwen2.5-14B-Instruct. The paper says 3e-6; the original's script says 5e-6. TRACES
is gaotang/RM-R1-Distill-SFT saved as JSON lines or Parquet, or a directory made by
--stage=synthesize. What is not set here is as published: the defaults of SftConfig.

Hardware: v5e-32, where it fits by --stage=plan; not yet run. Meant for 16 GPUs of 80 GB, too.
Expected result: none to compare with yet; the original publishes no loss.
"""

from rmr1_jax.config import OptimizerConfig, SftConfig, SftDataConfig

architecture = "Qwen/Qwen2.5-14B-Instruct"
config = SftConfig(
    workdir="runs/sft_qwen2_5_14b",
    data=SftDataConfig(pack_length=12288),
    optimizer=OptimizerConfig(learning_rate=3e-6),
    mesh="fsdp=-1,tensor=2",
    sequence_parallel=True,
)
