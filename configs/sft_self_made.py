"""A tiny judge of the self-made task, from random weights, on a CPU.

Command:
    python -m rmr1_jax.main --stage=sft --config=configs/sft_self_made.py

The same as --stage=sft with no other option: pairs and traces are made first where they are absent.

Hardware: two CPU cores (AMD EPYC), about four minutes.
Expected result: 85 to 90 % of held-out verdicts right over both orders; of the sums, half.
"""

from rmr1_jax.config.self_made import self_made_sft

config = self_made_sft()
