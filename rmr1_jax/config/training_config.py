"""What both training stages are asked for."""

from dataclasses import dataclass, field
from typing import Literal

from rmr1_jax.config.checks import at_least, check_choices, checkpoint_exists
from rmr1_jax.config.mesh_config import parse_mesh
from rmr1_jax.errors import UserError

Remat = Literal["none", "dots", "attention", "full"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay, as published."""

    learning_rate: float = 5e-6
    """The peak, after the warm-up."""
    beta1: float = 0.9
    """Decay of the running mean of gradients."""
    beta2: float = 0.95
    """Decay of the running mean of squared gradients."""
    epsilon: float = 1e-8
    """Added to the root of that mean before dividing by it."""
    weight_decay: float = 0.0
    """Decoupled weight decay: each step shrinks parameters by this times the learning rate."""
    clip_norm: float = 1.0
    """Clip the gradient to this norm."""
    warmup: float = 0.03
    """Warm-up, as a share of all steps if below 1, else as a number of steps."""
    final_lr_ratio: float = 0.1
    """The final learning rate, as a share of the peak."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the stored parameters (float32: master weights). Moments are always float32."""

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
    """Rank of the adapters. 0: train the whole model."""
    alpha: float = 32.0
    """Adapters are scaled by alpha / rank."""
    targets: str = "query,key,value,output,gate,up,down"
    """The projections that get an adapter, separated by commas."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved, and what is kept."""

    every: int = 20
    """Steps between checkpoints. The last step is always saved."""
    keep: int = 2
    """Number of latest checkpoints to keep, besides the best by validation."""

    def check(self) -> None:
        """Raises UserError."""
        at_least("checkpoint.every", self.every, 1)
        at_least("checkpoint.keep", self.keep, 1)


@dataclass(frozen=True)
class ValidationConfig:
    """When the run is measured on pairs it does not learn from."""

    every: int = 20
    """Steps between validations; the last step is always validated. 0: never."""
    judge: str = ""
    """Labelled pairs to judge: a prepared directory (its validation split) or a file."""
    pairs: int = 128
    """How many of them to judge, each in both orders."""
    max_new_tokens: int = 2048
    """The longest trace of a validation, in tokens."""

    def check(self) -> None:
        """Raises UserError."""
        at_least("validation.every", self.every, 0)
        at_least("validation.pairs", self.pairs, 0)
        at_least("validation.max_new_tokens", self.max_new_tokens, 1)


@dataclass(frozen=True)
class TrainingOptions:
    """A training run: where it lies and starts, how long it is, and how it is computed."""

    workdir: str = ""
    """The run directory. Rerun the command to resume it."""
    model: str = ""
    """The checkpoint to start from."""
    batch_size: int = 1
    """Examples per step."""
    micro_batch_size: int = 1
    """Packed rows per device at a time; gradients accumulate over the rest of an update."""
    epochs: float = 1.0
    """Passes over the data."""
    max_steps: int | None = None
    """Stop after this many steps, whatever epochs says. The schedule ends there, too."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    remat: Remat = "full"
    """What the backward pass recomputes: nothing (none), all but matrix products and attention
    (dots), all but attention (attention), or everything (full)."""
    dtype: Literal["", "float32", "bfloat16"] = ""
    """Type to compute in. Empty: float32 on a CPU, bfloat16 elsewhere."""
    mesh: str = ""
    """Devices per mesh axis, for example fsdp=-1,tensor=2. Empty: fsdp over all devices."""
    sequence_parallel: bool = False
    """Split the tokens of a row over the tensor axis between layers, for long rows."""
    max_nonfinite_steps: int = 3
    """Stop after this many updates in a row with a non-finite loss or gradient."""
    seed: int = 1
    """Seed of all that is random."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    log_every: int = 1
    """Steps between metrics."""

    def check_training(self, stage: str) -> None:
        """Refuse what cannot work, before a file is read. Raises UserError."""
        check_choices(self)
        parse_mesh(self.mesh)
        if not self.workdir:
            raise UserError(f"--stage={stage} needs --workdir=DIRECTORY")
        if self.model:
            checkpoint_exists("model", self.model)
        for name in ("batch_size", "micro_batch_size", "max_nonfinite_steps", "log_every"):
            at_least(name, getattr(self, name), 1)
        if self.max_steps is not None:
            at_least("max_steps", self.max_steps, 1)
        if not self.epochs > 0:
            raise UserError(f"--epochs={self.epochs} must be above 0")
        at_least("lora.rank", self.lora.rank, 0)
        self.optimizer.check()
        self.checkpoint.check()
        self.validation.check()
