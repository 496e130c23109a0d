"""A tiny judge of the toy task, from random weights, on a CPU.

Command:
    rmr1 sft --config=sft_toy_task

The same as `rmr1 sft` with no option: pairs and traces are made first where they are absent.

Hardware: two CPU cores (AMD EPYC), about four minutes.
Expected result: 85 to 90 % of held-out verdicts right over both orders; of the sums, half.
"""

from rmr1_jax.toy_task.toy_recipes import toy_sft

config = toy_sft()
