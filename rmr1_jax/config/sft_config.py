"""What `--stage=sft` is asked for."""

from dataclasses import dataclass, field
from typing import Literal

from rmr1_jax.config.checks import at_least, check_choices, checkpoint_exists
from rmr1_jax.errors import UserError

Remat = Literal["none", "dots", "attention", "full"]


@dataclass(frozen=True)
class SftDataConfig:
    """Which traces, and how they become rows of tokens."""

    train: str = ""
    """Traces: a directory made by --stage=synthesize, a file (context_messages, winner), or a
    released set on the hub. Empty: the toy task, made first where it is absent."""
    validation: str = ""
    """Traces for the validation loss. Empty: held_out of the training traces."""
    held_out: float = 0.03
    """Held out where validation is empty: a share if below 1, else a number. 0: none."""
    prompt: str = ""
    """chain_of_rubrics, reasoning, or a file that holds the prompt, for traces whose prompts are
    not rendered yet. Empty: chain_of_rubrics."""
    max_length: int = 12288
    """Longest prompt and trace together, in tokens; prompts that leave no room are dropped."""
    overlong: Literal["truncate", "drop"] = "truncate"
    """What becomes of a trace that is too long: truncate (as published) or drop."""
    loss_on_header: bool = True
    """Also learn the assistant header before the trace, as published."""
    pack_length: int | None = None
    """Tokens of a packed row. None: chosen to leave the least padding."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay, as published."""

    learning_rate: float = 5e-6
    """At its highest, after the warm-up."""
    beta1: float = 0.9
    """How much of the mean of gradients is kept at each step."""
    beta2: float = 0.95
    """How much of the mean of squared gradients is kept at each step."""
    epsilon: float = 1e-8
    """Added to the root of that mean before it divides."""
    weight_decay: float = 0.0
    """Each step also shrinks every parameter by this times the learning rate."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    warmup: float = 0.03
    """A share of all steps if below 1, else a number of steps."""
    final_lr_ratio: float = 0.1
    """The learning rate at the end, as a share of the highest."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Parameters are kept in: float32 (master weights) or bfloat16. Moments are float32."""

    def check(self) -> None:
        """Raises UserError."""
        for name in ("weight_decay", "warmup", "final_lr_ratio"):
            at_least(f"optimizer.{name}", getattr(self, name), 0)
        if not self.learning_rate > 0:
            raise UserError(f"--optimizer.learning_rate={self.learning_rate} must be above 0")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: train these and leave the model as it is."""

    rank: int = 0
    """0: train the whole model."""
    alpha: float = 32.0
    """Adapters are scaled by alpha / rank."""
    targets: str = "query,key,value,output,gate,up,down"
    """The projections that get an adapter, separated by commas."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved, and what is kept."""

    every: int = 20
    """Save after so many steps; the last step is always saved."""
    keep: int = 2
    """Keep so many of the latest, and the best by validation."""

    def check(self) -> None:
        """Raises UserError."""
        at_least("checkpoint.every", self.every, 1)
        at_least("checkpoint.keep", self.keep, 1)


@dataclass(frozen=True)
class ValidationConfig:
    """When the run is measured on pairs it does not learn from."""

    every: int = 20
    """Validate after so many steps and at the end. 0: never."""
    judge: str = ""
    """Labelled pairs to judge through the engine: a prepared directory (its validation split) or a
    file. Empty: none, or those of the toy task."""
    pairs: int = 128
    """How many of them, each in both orders."""
    max_new_tokens: int = 2048
    """The longest trace in that, in tokens."""

    def check(self) -> None:
        """Raises UserError."""
        at_least("validation.every", self.every, 0)
        at_least("validation.pairs", self.pairs, 0)
        at_least("validation.max_new_tokens", self.max_new_tokens, 1)


@dataclass(frozen=True)
class SftConfig:
    """Fine-tune on traces: the negative log-likelihood of each trace given its prompt. With no
    option: a small model learns the toy task from random weights, on a CPU, in minutes."""

    workdir: str = "runs/sft_toy_task"
    """Holds the whole run. The same command again goes on in it."""
    model: str = ""
    """The checkpoint to start from. Empty: small random weights for the toy task."""
    data: SftDataConfig = field(default_factory=SftDataConfig)
    batch_size: int = 128
    """Traces a step."""
    micro_batch_size: int = 1
    """Packed rows a device computes at a time; the rest of a step is accumulated."""
    epochs: float = 1.0
    """Passes over the traces."""
    max_steps: int | None = None
    """Stop after so many steps, whatever epochs says; the schedule ends there too."""
    loss: Literal["sequence_mean", "token_mean"] = "sequence_mean"
    """sequence_mean: every trace weighs the same (as published); token_mean: every token does."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    remat: Remat = "full"
    """What the backward pass computes again: none, dots (all but matrix products and attention),
    attention (all but attention) or full."""
    dtype: Literal["", "float32", "bfloat16"] = ""
    """Computed in: float32 or bfloat16. Empty: float32 on a CPU, bfloat16 elsewhere."""
    mesh: str = ""
    """Devices by axis, for example fsdp=-1,tensor=2. Empty: all of them fsdp."""
    sequence_parallel: bool = False
    """Split the tokens of a row over the tensor axis between layers, for long rows."""
    max_nonfinite_steps: int = 3
    """Stop after so many steps in a row whose loss or gradient is not finite."""
    seed: int = 42
    """Of random weights and of the order of the data."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    log_every: int = 1
    """Write metrics after so many steps."""

    def check(self) -> None:
        """Refuse what cannot work, before a file is read. Raises UserError."""
        check_choices(self)
        if not self.workdir:
            raise UserError("--stage=sft needs --workdir=DIRECTORY")
        if self.model:
            checkpoint_exists("model", self.model)
        if self.model and not self.data.train:
            raise UserError(
                "--model is given, but nothing to learn: name traces with --data.train=PATH"
            )
        for name in ("batch_size", "micro_batch_size", "max_nonfinite_steps", "log_every"):
            at_least(name, getattr(self, name), 1)
        if self.max_steps is not None:
            at_least("max_steps", self.max_steps, 1)
        if not self.epochs > 0:
            raise UserError(f"--epochs={self.epochs} must be above 0")
        at_least("data.max_length", self.data.max_length, 8)
        at_least("data.held_out", self.data.held_out, 0)
        if self.data.pack_length is not None:
            at_least("data.pack_length", self.data.pack_length, 8)
        at_least("lora.rank", self.lora.rank, 0)
        if self.lora.rank and not self.model:
            raise UserError("--lora.rank needs --model: adapters adapt a trained model")
        self.optimizer.check()
        self.checkpoint.check()
        self.validation.check()
