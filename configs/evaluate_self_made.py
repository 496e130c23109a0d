"""The judge that reinforcement learning made, on held-out pairs of the self-made task.

Command:
    python -m rmr1_jax.main --stage=evaluate --config=configs/evaluate_self_made.py

The same as --stage=evaluate with no other option: the GRPO run is made first where it is absent.

Hardware: two CPU cores (AMD EPYC), a minute once the run is there.
Expected result: 97 % of the verdicts right, over both orders.
"""

from rmr1_jax.config.self_made import self_made_evaluate

config = self_made_evaluate()
