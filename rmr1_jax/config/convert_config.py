"""What `--stage=convert` is asked for."""

from dataclasses import dataclass
from typing import Literal

from rmr1_jax.config.checks import check_choices
from rmr1_jax.errors import UserError


@dataclass(frozen=True)
class ConvertConfig:
    """Convert a checkpoint: Hugging Face or GGUF to Orbax, Orbax (a training run's too) or GGUF to
    Hugging Face; adapters to PEFT files."""

    input: str = ""
    """A Hugging Face directory, a GGUF file, an Orbax directory made by this stage, a training run
    (its latest checkpoint) or one of its checkpoints."""
    output: str = ""
    """The directory to write; it must not exist or be empty."""
    to: Literal["orbax", "huggingface", "peft"] = "orbax"
    """orbax, huggingface (adapters merged in) or peft (adapters alone)."""
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Stored type of the weights: float32, bfloat16 or float16. Empty: as in the input."""
    max_shard_size: str = "5GB"
    """Largest safetensors file written, for example 5GB or 500MB."""
    tokenizer: str = ""
    """A Hugging Face directory to take the tokenizer from. Empty: the input's own."""

    def check(self) -> None:
        """Refuse what cannot work, before a file is opened. Raises UserError."""
        check_choices(self)
        if not self.input or not self.output:
            missing = "input" if not self.input else "output"
            raise UserError(f"--stage=convert needs --{missing}=PATH")
