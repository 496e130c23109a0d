"""Stage 2 of RM-R1: GRPO with a reward of +1 or -1, with the published numbers.

Command:
    rmr1 grpo --config=grpo_rm_r1:qwen-7b --model=MODEL_DIR --data.train=PAIRS

For qwen-*, MODEL_DIR is the run of sft_rm_r1 (runs/sft_qwen-7b) or its export, and PAIRS is
gaotang/RM-R1-after-Distill-RLVR; 62 steps. For deepseek-*, which skip stage 1, MODEL_DIR is the
model itself and PAIRS is gaotang/RM-R1-Reasoning-RLVR; 71 steps. Save the data set as JSON lines or
Parquet, or use a directory made by `rmr1 prepare`. What is not set here is as published: the
defaults of GrpoConfig.

- 7B: the loss is a mean over pools of 4 traces, as the original's script has it (micro-batches of
  4). 14B and 32B: every trace has the same weight (micro-batches of 1).
- qwen-14b, qwen-32b: the original's scripts name the data of the reasoning models, without the
  rubric prompt, a known slip. The released checkpoints write rubrics, so the data of the distilled
  models are meant.
- qwen-1.5b: for one GPU of 80 GB; a step is an eighth of the published one, with shorter traces.
- qwen-0.5b-lora: for one small TPU; adapters of rank 16, whose base model is also the reference.
  Neither of these two is published.

Hardware: the topology in the table, where the recipe fits according to `rmr1 plan`; not yet run.
7B should also fit 8 GPUs of 80 GB, 14B 16, 32B 32.
Expected result: that of the released RM-R1 models, within its noise.
"""

from typing import NamedTuple

from rmr1_jax.config import (
    GrpoConfig,
    LoraConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PromptsConfig,
    ReferenceConfig,
    RolloutConfig,
    ValidationConfig,
)


class Model(NamedTuple):
    architecture: str
    learning_rate: float
    topology: str
    tensor: int
    pool: int = 1


MODELS = {
    "qwen-7b": Model("Qwen/Qwen2.5-7B-Instruct", 1e-6, "v6e-8", 4, pool=4),
    "qwen-14b": Model("Qwen/Qwen2.5-14B-Instruct", 7e-7, "v5p-32", 4),
    "qwen-32b": Model("Qwen/Qwen2.5-32B-Instruct", 5e-7, "v5p-64", 8),
    "deepseek-7b": Model("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 1e-6, "v6e-8", 4, pool=4),
    "deepseek-14b": Model("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", 1e-6, "v5p-32", 4),
    "deepseek-32b": Model("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", 8e-7, "v5p-64", 8),
    "qwen-1.5b": Model("Qwen/Qwen2.5-1.5B-Instruct", 1e-6, "v6e-4", 1),
    "qwen-0.5b-lora": Model("Qwen/Qwen2.5-0.5B-Instruct", 2e-5, "v5e-1", 1),
}


def optimizer(learning_rate: float, weight_decay: float = 0.01) -> OptimizerConfig:
    """AdamW at a constant rate."""
    return OptimizerConfig(
        learning_rate=learning_rate,
        beta2=0.999,
        weight_decay=weight_decay,
        warmup=0.0,
        final_lr_ratio=1.0,
    )


def get_config(name: str) -> GrpoConfig:
    model, workdir = MODELS[name], f"runs/grpo_{name}"
    if name == "qwen-1.5b":
        return GrpoConfig(
            workdir=workdir,
            data=PromptsConfig(max_prompt=3072),
            batch_size=128,
            mini_batch=64,
            rollout=RolloutConfig(max_response=2048, max_num_seqs=256),
            reference=ReferenceConfig(dtype="bfloat16"),
            optimizer=optimizer(model.learning_rate),
            validation=ValidationConfig(every=10),
        )
    if name == "qwen-0.5b-lora":
        return GrpoConfig(
            workdir=workdir,
            data=PromptsConfig(max_prompt=1024),
            batch_size=32,
            mini_batch=16,
            rollout=RolloutConfig(max_response=512, max_num_seqs=128),
            lora=LoraConfig(rank=16),
            optimizer=optimizer(model.learning_rate, weight_decay=0.0),
            validation=ValidationConfig(every=10, max_new_tokens=512),
        )
    pooled = ObjectiveConfig(reduction="pooled_mean", pool=model.pool)
    return GrpoConfig(
        workdir=workdir,
        objective=pooled if model.pool > 1 else ObjectiveConfig(),
        optimizer=optimizer(model.learning_rate),
        rollout=RolloutConfig(max_num_seqs=128),
        mesh=f"fsdp=-1,tensor={model.tensor}",
        sequence_parallel=True,
    )
