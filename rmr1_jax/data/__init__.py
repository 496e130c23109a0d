"""From files of preferences to what the stages use."""

from rmr1_jax.data.preference_file import RejectsFile, read_preferences

__all__ = ["RejectsFile", "read_preferences"]
