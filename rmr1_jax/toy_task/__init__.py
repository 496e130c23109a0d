"""Preferences about small verifiable questions, in unlimited numbers, and traces that judge them.

A decoder of half a million random weights learns to judge them in minutes on a CPU, so the whole
pipeline can be seen to work.
"""

from rmr1_jax.toy_task.toy_preferences import toy_preferences
from rmr1_jax.toy_task.toy_tokenizer import (
    TOY_PROMPT,
    tiny_model_config,
    toy_tokenizer,
    write_tokenizer,
)
from rmr1_jax.toy_task.toy_traces import scripted_trace

__all__ = [
    "TOY_PROMPT",
    "scripted_trace",
    "tiny_model_config",
    "toy_preferences",
    "toy_tokenizer",
    "write_tokenizer",
]
