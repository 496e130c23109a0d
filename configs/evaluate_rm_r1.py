"""RM-R1's evaluation: RewardBench, RM-Bench and RMB, each pair once, greedy, to the end of the
context.

Command:
    rmr1 evaluate --config=evaluate_rm_r1 \
        --model=MODEL_DIR --prompt=DATA.jsonl --output=results/rm_r1

MODEL_DIR is one of the released checkpoints; DATA.jsonl one of the released data sets, for the
prompt that they were trained with. The benchmarks come from the hub.

Hardware: one accelerator that holds the model; not run yet, for want of one.
Expected result: for RM-R1-Qwen2.5-Instruct-7B the paper has 85.2 on RewardBench, 70.2 on RM-Bench
(as published) and 66.4 on RMB.
"""

from rmr1_jax.config import EvaluateConfig

config = EvaluateConfig()
