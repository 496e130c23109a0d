"""The judge that reinforcement learning made, on held-out pairs of the toy task.

Command:
    python -m rmr1_jax.main --stage=evaluate --config=configs/evaluate_toy_task.py

The same as --stage=evaluate with no other option: the GRPO run is made first where it is absent.

Hardware: two CPU cores (AMD EPYC), a minute once the run is there.
Expected result: 97 % of the verdicts right, over both orders.
"""

from rmr1_jax.toy_task.toy_recipes import toy_evaluate

config = toy_evaluate()
