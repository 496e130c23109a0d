"""What `--stage=synthesize` is asked for."""

import re
from dataclasses import dataclass, field
from typing import Literal

from rmr1_jax.config.checks import at_least, check_choices
from rmr1_jax.errors import UserError

ENDPOINTS = ("openai", "anthropic")


@dataclass(frozen=True)
class TeacherConfig:
    """Who writes traces, and how it may be asked."""

    kind: Literal["program", "openai", "anthropic", "local"] = "program"
    """program (the toy task only), openai (any OpenAI-compatible endpoint), anthropic, or
    local (a checkpoint, through our own engine)."""
    model: str = ""
    """The model's name at the endpoint, or the path of a local checkpoint."""
    url: str = ""
    """The endpoint, for example http://localhost:8000/v1. Empty: the vendor's."""
    key_variable: str = ""
    """The environment variable that holds the key. Empty: OPENAI_API_KEY or ANTHROPIC_API_KEY for
    the vendor's endpoint, no key for another."""
    max_new_tokens: int = 8192
    """The longest trace, in tokens; hidden reasoning counts."""
    temperature: float | None = None
    """None: the endpoint's default, as published; greedy for kind=local."""
    concurrency: int = 8
    """Requests to an endpoint at the same time."""
    requests_per_minute: int | None = None
    """A rate limit to keep. None: as fast as answers come."""
    tokens_per_minute: int | None = None
    """A rate limit to keep, prompt and trace together. None: as fast as answers come."""
    timeout: float = 600.0
    """Seconds to wait for one answer."""
    attempts: int = 6
    """Attempts per request before giving up."""
    accuracy: float = 0.9
    """kind=program only: how often the verdict is right."""
    haste: float = 0.0
    """kind=program only: how often sums are guessed."""

    def check(self, section: str) -> None:
        """Refuse what cannot work; `section` is what the options begin with. Raises UserError."""
        if self.kind != "program" and not self.model:
            raise UserError(f"--{section}.kind={self.kind} needs --{section}.model=NAME")
        at_least(f"{section}.max_new_tokens", self.max_new_tokens, 1)
        at_least(f"{section}.concurrency", self.concurrency, 1)
        at_least(f"{section}.attempts", self.attempts, 1)
        at_least(f"{section}.timeout", self.timeout, 0.001)
        for name in ("accuracy", "haste"):
            at_least(f"{section}.{name}", getattr(self, name), 0)
            if getattr(self, name) > 1:
                raise UserError(f"--{section}.{name}={getattr(self, name)} must be at most 1")
        if self.temperature is not None:
            at_least(f"{section}.temperature", self.temperature, 0)
        if self.url and self.kind not in ENDPOINTS:
            raise UserError(f"--{section}.url is for kind={' or kind='.join(ENDPOINTS)}")
        if self.key_variable and not re.fullmatch("[A-Z_][A-Z0-9_]*", self.key_variable):
            # Not shown: it may be the key itself.
            raise UserError(
                f"--{section}.key_variable must be the name of an environment variable, in capital "
                "letters, such as OPENAI_API_KEY; the key itself belongs into that variable"
            )
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None:
                at_least(f"{section}.{name}", value, 1)


@dataclass(frozen=True)
class SynthesizeConfig:
    """Distil traces in two passes: ask teacher 1 and keep what is right; show teacher 2 the correct
    verdict and the wrong trace, and validate what it writes. With no option: the toy task,
    by a scripted teacher that is not always right."""

    input: str = ""
    """A directory made by `rmr1 prepare`, or a file of labelled pairs. Empty: data/toy_task, made
    first if it is absent."""
    split: str = "distillation"
    """Which part of a prepared directory: train, validation or distillation."""
    output: str = "data/toy_task_traces"
    """The directory to write. Rerun the command to resume it; nothing is asked twice."""
    prompt: str = ""
    """chain_of_rubrics, reasoning, or a file that holds the prompt. Empty: chain_of_rubrics, or the
    short prompt of the toy task if a program teaches."""
    limit: int | None = None
    """Only the first pairs, this many. None: all."""
    teacher1: TeacherConfig = field(default_factory=TeacherConfig)
    teacher2: TeacherConfig = field(default_factory=lambda: TeacherConfig(accuracy=1.0))
    max_requests: int | None = None
    """Stop before more requests than this, tries included, over both passes and all runs. None: no
    cap."""
    max_tokens: int | None = None
    """Stop before more tokens than this (prompts and traces), over both passes and all runs. A
    request goes out only if the longest trace would fit. None: no cap."""
    batch: Literal["", "write", "read"] = ""
    """write: write request files for the vendors' batch APIs instead of asking; read: read the
    result files that were put beside them (pass1.anthropic.results.jsonl and so on); then write
    again, for pass 2. Empty: ask directly."""

    def check(self) -> None:
        """Refuse what cannot work, before anything is asked. Raises UserError."""
        check_choices(self)
        if not self.output:
            raise UserError("--stage=synthesize needs --output=DIRECTORY")
        self.teacher1.check("teacher1")
        self.teacher2.check("teacher2")
        if self.batch and {self.teacher1.kind, self.teacher2.kind}.isdisjoint(ENDPOINTS):
            raise UserError(
                f"--batch={self.batch} needs a teacher with a batch API: "
                f"--teacher1.kind={' or '.join(ENDPOINTS)}"
            )
        for name in ("limit", "max_requests", "max_tokens"):
            value = getattr(self, name)
            if value is not None:
                at_least(name, value, 1)
