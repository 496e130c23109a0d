"""The judge that reinforcement learning made, on held-out pairs of the toy task.

Command:
    rmr1 evaluate --config=evaluate_toy_task

The same as `rmr1 evaluate` with no option: the GRPO run is made first where it is absent.

Hardware: two CPU cores (AMD EPYC), a minute once the run is there.
Expected result: 97 % of the verdicts right, over both orders.
"""

from rmr1_jax.toy_task.toy_recipes import toy_evaluate

config = toy_evaluate()
