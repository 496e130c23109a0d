"""RM-R1-DeepSeek-Distilled-Qwen-7B as a judge.

Command:
    python -m rmr1_jax.main --stage=judge --config=configs/judge_rm_r1_deepseek_7b.py \
        --model=MODEL_DIR --input=pairs.jsonl --output=verdicts.jsonl

MODEL_DIR is the released checkpoint (gaotang/RM-R1-DeepSeek-Distilled-Qwen-7B). Reasoning models
are asked in one user message. The built-in one has the blocks of the prompt that the checkpoint was
trained with, and asks for the same verdict in words of our own.

Hardware: not yet run.
Expected result: none to compare with yet.
"""

from rmr1_jax.config import JudgeConfig

config = JudgeConfig(
    prompt="reasoning",
    max_new_tokens=8192,  # the longest response in its training
    dtype="bfloat16",
)
