"""Stage 1 of RM-R1 for Llama-3.1-8B-Instruct, with the 7B model's numbers.

Command:
    python -m rmr1_jax.main --stage=sft --config=configs/sft_llama_3_1_8b.py \
        --model=MODEL_DIR --data.train=TRACES

MODEL_DIR is meta-llama/Llama-3.1-8B-Instruct; not among the published models. TRACES is
gaotang/RM-R1-Distill-SFT saved as JSON lines or Parquet, or a directory made by --stage=synthesize.
What is not set here is as published: the defaults of SftConfig.

Hardware: v5e-16, where it fits by --stage=plan; not yet run. Meant for 8 GPUs of 80 GB, too.
Expected result: none to compare with.
"""

from rmr1_jax.config import OptimizerConfig, SftConfig, SftDataConfig

architecture = "meta-llama/Llama-3.1-8B-Instruct"
config = SftConfig(
    workdir="runs/sft_llama_3_1_8b",
    data=SftDataConfig(pack_length=12288),
    optimizer=OptimizerConfig(learning_rate=5e-6),
)
