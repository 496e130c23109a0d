"""Preferences about small verifiable questions, in unlimited numbers, and traces that judge them.

A decoder of half a million random weights learns to judge them in minutes on a CPU, so the whole
pipeline can be seen to work.
"""

from rmr1_jax.data.self_made.preferences import self_made_preferences
from rmr1_jax.data.self_made.tokenizer import (
    SELF_MADE_PROMPT,
    self_made_tokenizer,
    tiny_model_config,
    write_tokenizer,
)
from rmr1_jax.data.self_made.traces import programmed_trace

__all__ = [
    "SELF_MADE_PROMPT",
    "programmed_trace",
    "self_made_preferences",
    "self_made_tokenizer",
    "tiny_model_config",
    "write_tokenizer",
]
