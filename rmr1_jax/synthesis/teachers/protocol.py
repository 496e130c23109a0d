"""What a teacher is asked and what it answers, whoever it is."""

from dataclasses import dataclass
from typing import Protocol

from rmr1_jax.data.example import Example

# The start of a message in a chat template, with its role: a few tokens in every known one.
_TOKENS_OF_A_ROLE = 16


@dataclass(frozen=True)
class Request:
    """One question to a teacher. `key` names it in the log of replies and in batch files."""

    key: str
    example: Example
    messages: list[dict[str, str]]

    @property
    def most_prompt_tokens(self) -> int:
        """No tokenizer of bytes makes more tokens than this of the messages."""
        return sum(
            len(message["content"].encode("utf-8", "replace")) + _TOKENS_OF_A_ROLE
            for message in self.messages
        )


@dataclass(frozen=True)
class Reply:
    """What a teacher wrote. `finish_reason` is "stop", "length" (cut off) or the vendor's word."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Teacher(Protocol):
    """Whoever writes traces.

    `max_new_tokens` bounds a reply. `concurrency` is how many requests it wants at a time.
    """

    name: str
    max_new_tokens: int
    concurrency: int

    async def check(self) -> None:
        """Find out, without asking anything that costs, that it can be asked. Raises UserError."""

    async def ask(self, request: Request) -> Reply:
        """One attempt. Raises TryAgain, ExampleRefused, or UserError where no attempt can work."""

    async def close(self) -> None:
        """Give back what it holds."""


class TryAgain(Exception):
    """An attempt failed in a way that may pass.

    Args:
      reason: for the report.
      after: seconds that the teacher asks to wait, if it says.
      may_have_cost: the teacher may have written a reply that got lost.
    """

    def __init__(
        self, reason: str, *, after: float | None = None, may_have_cost: bool = False
    ) -> None:
        super().__init__(reason)
        self.after = after
        self.may_have_cost = may_have_cost


class ExampleRefused(Exception):
    """The teacher will not answer this one request, and may well answer others."""
