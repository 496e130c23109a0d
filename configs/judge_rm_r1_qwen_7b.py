"""RM-R1-Qwen2.5-Instruct-7B as a judge.

Command:
    python -m rmr1_jax.main --stage=judge --config=configs/judge_rm_r1_qwen_7b.py \
        --model=MODEL_DIR --prompt=DATA.jsonl --input=pairs.jsonl --output=verdicts.jsonl

MODEL_DIR is the released checkpoint (gaotang/RM-R1-Qwen2.5-Instruct-7B). DATA.jsonl is a released
data set for instruct models (RM-R1-Distill-SFT, for example) saved as JSON lines: the system
message of its first record is the prompt that the checkpoint was trained with. Without --prompt the
built-in one is used, whose section on the output format differs from it.

Hardware: not yet run.
Expected result: none to compare with yet.
"""

from rmr1_jax.config import JudgeConfig

config = JudgeConfig(
    prompt="chain_of_rubrics",
    max_new_tokens=8192,  # the longest response in its training
    dtype="bfloat16",
)
