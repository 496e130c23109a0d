"""Stage 1 of RM-R1: supervised fine-tuning on distilled traces, with the published numbers.

Command:
    rmr1 sft --config=sft_rm_r1:qwen-7b --model=MODEL_DIR --data.train=TRACES

MODEL_DIR is the model of the table below. TRACES is gaotang/RM-R1-Distill-SFT saved as JSON lines
or Parquet, or a directory made by `rmr1 synthesize`. What is not set here is as published: the
defaults of SftConfig.

- qwen-7b: 68 steps on the 8,753 published traces.
- qwen-14b, qwen-32b: the paper's learning rates. The original's script for 14B has 5e-6; its script
  for 32B trains the 7B model. The reasoning models (DeepSeek-R1-Distill) skip stage 1.
- qwen-0.5b: for one small accelerator, with a higher learning rate, shorter rows and a smaller
  batch. llama-8b, qwen3-8b: with the numbers of qwen-7b. None of these is published.

Hardware: the topology in the table, where the recipe fits according to `rmr1 plan`; not yet run.
qwen-7b, llama-8b and qwen3-8b should also fit 8 GPUs of 80 GB, qwen-14b 16, qwen-0.5b one of 16 GB.
Expected result: none to compare with yet; the original publishes no loss.
"""

from typing import NamedTuple

from rmr1_jax.config import OptimizerConfig, SftConfig, SftDataConfig


class Model(NamedTuple):
    architecture: str
    learning_rate: float
    topology: str
    mesh: str = ""
    sequence_parallel: bool = False
    batch_size: int = 128
    longest: int = 12288


MODELS = {
    "qwen-7b": Model("Qwen/Qwen2.5-7B-Instruct", 5e-6, "v5e-16"),
    "qwen-14b": Model("Qwen/Qwen2.5-14B-Instruct", 3e-6, "v5e-32", "fsdp=-1,tensor=2", True),
    "qwen-32b": Model("Qwen/Qwen2.5-32B-Instruct", 2e-6, "v5p-64", "fsdp=-1"),
    "qwen-0.5b": Model("Qwen/Qwen2.5-0.5B-Instruct", 2e-5, "v5e-1", batch_size=32, longest=4096),
    "llama-8b": Model("meta-llama/Llama-3.1-8B-Instruct", 5e-6, "v5e-16"),
    "qwen3-8b": Model("Qwen/Qwen3-8B", 5e-6, "v5e-16", "fsdp=-1,tensor=2"),
}


def get_config(name: str) -> SftConfig:
    model = MODELS[name]
    return SftConfig(
        workdir=f"runs/sft_{name}",
        data=SftDataConfig(max_length=model.longest, pack_length=model.longest),
        batch_size=model.batch_size,
        optimizer=OptimizerConfig(learning_rate=model.learning_rate),
        mesh=model.mesh,
        sequence_parallel=model.sequence_parallel,
    )
