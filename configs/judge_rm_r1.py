"""A released RM-R1 checkpoint as a judge.

Command:
    rmr1 judge --config=judge_rm_r1:qwen --model=MODEL_DIR --prompt=DATA.jsonl --input=pairs.jsonl \
        --output=verdicts.jsonl

MODEL_DIR is a released checkpoint: gaotang/RM-R1-Qwen2.5-Instruct-7B, 14B or 32B with `qwen`, and
gaotang/RM-R1-DeepSeek-Distilled-Qwen-7B, 14B or 32B with `deepseek`.

- qwen: DATA.jsonl is a released data set for instruct models (RM-R1-Distill-SFT, for example) saved
  as JSON lines. The system message of its first record is the prompt that the checkpoint was
  trained with. Without --prompt the built-in one is used, whose section on the output format
  differs from it.
- deepseek: reasoning models are asked in one user message; leave out --prompt. The built-in prompt
  has the blocks of the published one, and asks for the same verdict in our own words.

Hardware: one accelerator that holds the model; not yet run.
Expected result: none to compare with yet.
"""

from rmr1_jax.config import JudgeConfig

MODELS = {"qwen": "chain_of_rubrics", "deepseek": "reasoning"}
LONGEST = 8192
"""Tokens of the longest response in the checkpoints' training."""


def get_config(name: str) -> JudgeConfig:
    return JudgeConfig(prompt=MODELS[name], max_new_tokens=LONGEST, dtype="bfloat16")
