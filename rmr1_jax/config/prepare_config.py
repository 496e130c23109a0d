"""What `--stage=prepare` is asked for."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from rmr1_jax.config.checks import at_least, check_choices
from rmr1_jax.errors import UserError


@dataclass(frozen=True)
class Source:
    """One line of a mixture."""

    name: str
    """A built-in source (skywork, code, math, toy_task), a data set on the Hugging Face hub
    (owner/name or owner/name:config), tfds:NAME, a directory made by this stage, or a file or
    directory (.jsonl, .jsonl.gz, .json, .parquet; local or gs://)."""
    split: str = "train"
    """The split of a hub or TFDS data set, or of a directory made by this stage."""
    count: int | None = None
    """Keep this many, chosen by the seed after the filters. None: all."""
    exclude: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Field -> values; records with one of them are dropped, counted by field and value."""
    fields: dict[str, str] = field(default_factory=dict)
    """Our field -> the source's, for layouts that use other names."""


@dataclass(frozen=True)
class PrepareConfig:
    """Make a training mixture: read preference data, filter, deduplicate, decontaminate, balance
    the positions, split, and store. With no option: the toy task."""

    output: str = "data/toy_task"
    """The directory to write, on this machine. Rerun the command to resume it."""
    input: str = ""
    """Sources by name or path, separated by commas; a recipe can say more about each."""
    sources: Annotated[tuple[Source, ...], tyro.conf.Suppress] = ()
    """In a recipe only: sources with their filters, counts and field names."""
    balance: Literal["alternate", "shuffle", "as_given"] = "shuffle"
    """Where the chosen response goes: shuffle (seeded), alternate (A, B, A, ... as published, which
    gives the label away if kinds of questions alternate too) or as_given."""
    seed: int = 42
    """Seed of counts, shuffles and splits."""
    validation: float = 0.02
    """Held out: a share of the records if below 1, else a number."""
    distillation: float = 0.12
    """Set apart for distillation: a share of the training records if at most 1, else a number."""
    exact_duplicates: bool = True
    """Drop pairs that occurred before, in either order."""
    near_duplicates: float = 0.9
    """Drop records whose estimated Jaccard similarity (word 5-grams) to an earlier one is at least
    this. 0 is off."""
    against: str = ""
    """Benchmark files to decontaminate against, separated by commas."""
    ngram: int = 13
    """Records that share this many words in a row with a benchmark's question are dropped."""
    tokenizer: str = ""
    """A checkpoint whose tokenizer and chat template measure the prompt. Empty: not measured."""
    max_prompt_tokens: int = 4096
    """Drop longer prompts, if a tokenizer is given."""
    prompt: str = ""
    """chain_of_rubrics, reasoning, or a file that holds the prompt; for measuring."""
    shard_records: int = 10_000
    """Records per file."""
    toy_task: int = 6_000
    """Number of records that the source toy_task makes."""

    def check(self) -> None:
        """Refuse what cannot work, before anything is read. Raises UserError."""
        check_choices(self)
        if not self.output:
            raise UserError("--stage=prepare needs --output=DIRECTORY")
        if "://" in self.output:
            raise UserError(
                f"--output={self.output} must be a local directory; copy it to a bucket afterwards"
            )
        if self.input and self.sources:
            raise UserError(
                "--input and the recipe's sources both say what to read; leave out --input"
            )
        for name in ("validation", "distillation", "near_duplicates"):
            at_least(name, getattr(self, name), 0)
        if self.near_duplicates > 1:
            raise UserError(f"--near_duplicates={self.near_duplicates} must be at most 1")
        for source in self.sources:
            if source.count is not None:
                at_least(f"sources: count of {source.name}", source.count, 1)
        for name in ("ngram", "max_prompt_tokens", "shard_records", "toy_task"):
            at_least(name, getattr(self, name), 1)
