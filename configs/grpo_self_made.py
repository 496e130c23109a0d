"""A better judge of the self-made task, by reinforcement learning, on a CPU.

Command:
    python -m rmr1_jax.main --stage=grpo --config=configs/grpo_self_made.py

The same as --stage=grpo with no other option: the SFT run that it starts from is trained first
where it is absent.

Hardware: two CPU cores (AMD EPYC), about a quarter of an hour.
Expected result: 97 % of held-out verdicts right over both orders, from 88 %
(docs/grpo-self-made.md).
"""

from rmr1_jax.config.self_made import self_made_grpo

config = self_made_grpo()
