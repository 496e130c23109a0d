"""A better judge of the toy task, by reinforcement learning, on a CPU.

Command:
    python -m rmr1_jax.main --stage=grpo --config=configs/grpo_toy_task.py

The same as --stage=grpo with no other option: the SFT run that it starts from is trained first
where it is absent.

Hardware: two CPU cores (AMD EPYC), about a quarter of an hour.
Expected result: 97 % of held-out verdicts right over both orders, from 88 %
(docs/grpo-toy-task.md).
"""

from rmr1_jax.toy_task.toy_recipes import toy_grpo

config = toy_grpo()
