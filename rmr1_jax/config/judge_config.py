"""What `--stage=judge` is asked for, and what every stage that judges is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rmr1_jax.config.checks import at_least, check_choices, checkpoint_exists
from rmr1_jax.config.mesh_config import parse_mesh
from rmr1_jax.config.sampling_config import SamplingOptions
from rmr1_jax.errors import UserError


@dataclass(frozen=True)
class JudgeModel:
    """What judges, and how it is asked."""

    model: str = ""
    """The judge: a Hugging Face directory, a converted (Orbax) directory, a training run or a GGUF
    file."""
    prompt: str = ""
    """chain_of_rubrics, reasoning, or a file that holds the prompt. Empty: the model's own."""


@dataclass(frozen=True)
class JudgeOptions(SamplingOptions, JudgeModel):  # the last comes first in --help
    """A judge, and how it writes its traces."""

    votes: int = 1
    """Traces per pair; the verdict is their majority. Needs a temperature above 0."""
    max_num_seqs: int | None = None
    """Traces written at the same time. None: chosen for the machine."""
    max_context: int | None = None
    """Longest prompt and trace together, in tokens. None: the context of the model."""
    mesh: str = ""
    """Devices per mesh axis, for example data=2,tensor=4. Empty: chosen for the machine."""
    dtype: Literal["", "float32", "bfloat16"] = ""
    """Type to compute in. Empty: float32 on a CPU, bfloat16 elsewhere."""

    def check_judge(self, stage: str) -> None:
        """Refuse what cannot work, before a model is read. Raises UserError."""
        check_choices(self)
        parse_mesh(self.mesh)
        if not self.model:
            raise UserError(
                f"--stage={stage} needs --model=PATH: a Hugging Face directory, "
                "a converted directory or a GGUF file"
            )
        checkpoint_exists("model", self.model)
        at_least("max_new_tokens", self.max_new_tokens, 1)
        self.check_sampling()
        at_least("votes", self.votes, 1)
        if self.votes > 1 and self.temperature == 0:
            raise UserError(
                f"--votes={self.votes} needs --temperature above 0: "
                "without it all traces of a pair are the same"
            )
        if self.max_num_seqs is not None:
            at_least("max_num_seqs", self.max_num_seqs, 1)
        if self.max_context is not None:
            at_least("max_context", self.max_context, 1)


@dataclass(frozen=True)
class JudgeConfig(JudgeOptions):
    """Judge pairs of responses: a file of pairs (--input, --output), or one pair on the terminal
    (--question, --response_a, --response_b)."""

    input: str = ""
    """The pairs, one JSON object per line: question, response_a, response_b, optionally label."""
    output: str = ""
    """The file for verdicts, one JSON object per line. Rerun the command to resume it."""
    question: str = ""
    """One pair instead of a file: what was asked."""
    response_a: str = ""
    """One pair instead of a file: the first response."""
    response_b: str = ""
    """One pair instead of a file: the second response."""
    swap: bool = False
    """Judge both orders of each pair; only a verdict that both orders give counts."""

    def check(self) -> None:
        """Refuse what cannot work, before a model is read. Raises UserError."""
        self.check_judge("judge")
        pair = {name: getattr(self, name) for name in ("question", "response_a", "response_b")}
        if any(pair.values()):
            if self.input or self.output:
                raise UserError(
                    "--question, --response_a and --response_b judge one pair on the terminal; "
                    "leave out --input and --output, or put the pair in the input file"
                )
            for name, value in pair.items():
                if not value.strip():
                    raise UserError(f"one pair on the terminal also needs --{name}=TEXT")
        else:
            if not self.input:
                raise UserError(
                    "nothing to judge: give --input=PAIRS.jsonl --output=VERDICTS.jsonl, "
                    "or --question, --response_a and --response_b"
                )
            if not self.output:
                raise UserError("--input needs --output=VERDICTS.jsonl: where the verdicts go")
            if Path(self.input).resolve() == Path(self.output).resolve():
                raise UserError(f"--input and --output are the same file, {self.input}")
