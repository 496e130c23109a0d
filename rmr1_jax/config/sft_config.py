"""What `--stage=sft` is asked for."""

from dataclasses import dataclass, field
from typing import Literal

from rmr1_jax.config.checks import at_least
from rmr1_jax.config.training_config import TrainingOptions
from rmr1_jax.errors import UserError


@dataclass(frozen=True)
class SftDataConfig:
    """Which traces, and how they become rows of tokens."""

    train: str = ""
    """Traces: a directory made by --stage=synthesize, a file (context_messages, winner), or a
    released set on the hub. Empty: the toy task, made first if it is absent."""
    validation: str = ""
    """Traces for the validation loss. Empty: held_out of the training traces."""
    held_out: float = 0.03
    """If validation is empty: hold out this share (below 1) or number of traces. 0: none."""
    prompt: str = ""
    """chain_of_rubrics, reasoning, or a file that holds the prompt, for traces whose prompts are
    not rendered yet. Empty: chain_of_rubrics."""
    max_length: int = 12288
    """Longest prompt and trace together, in tokens; prompts that leave no room are dropped."""
    overlong: Literal["truncate", "drop"] = "truncate"
    """What to do with a trace that is too long: truncate it (as published) or drop it."""
    loss_on_header: bool = True
    """Include the assistant header before the trace in the loss, as published."""
    pack_length: int | None = None
    """Tokens of a packed row. None: chosen to leave the least padding."""


@dataclass(frozen=True)
class SftConfig(TrainingOptions):
    """Fine-tune on traces: the negative log-likelihood of each trace given its prompt. With no
    option: a small model learns the toy task from random weights, on a CPU, in minutes."""

    workdir: str = "runs/sft_toy_task"
    """The run directory. Rerun the command to resume it."""
    model: str = ""
    """The checkpoint to start from. Empty: small random weights for the toy task."""
    data: SftDataConfig = field(default_factory=SftDataConfig)
    batch_size: int = 128
    """Traces per step, on average."""
    loss: Literal["sequence_mean", "token_mean"] = "sequence_mean"
    """sequence_mean: every trace has the same weight (as published); token_mean: every token."""
    seed: int = 42
    """Seed of random weights and of the order of the data."""

    def check(self) -> None:
        """Refuse what cannot work, before a file is read. Raises UserError."""
        self.check_training("sft")
        if self.model and not self.data.train:
            raise UserError(
                "--model is given, but nothing to learn: name traces with --data.train=PATH"
            )
        if self.lora.rank and not self.model:
            raise UserError("--lora.rank needs --model: adapters adapt a trained model")
        at_least("data.max_length", self.data.max_length, 8)
        at_least("data.held_out", self.data.held_out, 0)
        if self.data.pack_length is not None:
            at_least("data.pack_length", self.data.pack_length, 8)
