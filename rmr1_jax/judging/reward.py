"""The verifiable reward of RM-R1's reinforcement learning (paper §2; lm_as_judge.py)."""

from rmr1_jax.judging.preference import parse_label
from rmr1_jax.judging.verdict import answer


def reward(text: str, label: str) -> float:
    """+1 if the trace ends with the labelled verdict and not with the other one, else -1.

    `text` is the decoded response with its special tokens: they count towards the 80 characters.
    `label` is "A" or "B" (or "model_a", "model_b"); any other raises UserError.
    """
    return 1.0 if answer(text, "reward").verdict == parse_label(label) else -1.0
