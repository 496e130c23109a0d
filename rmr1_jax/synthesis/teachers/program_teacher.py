"""The toy task's programmatic teacher, behind the same protocol as all others."""

from rmr1_jax.errors import UserError
from rmr1_jax.synthesis.teachers.protocol import Reply, Request
from rmr1_jax.toy_task.scripted_teacher import ScriptedTeacher


class ProgramTeacher:
    """Right with probability `accuracy`. It reads the pair, not the messages, and has no tokens."""

    name = "program"
    max_new_tokens = 0
    concurrency = 1  # it never waits for anything

    def __init__(self, accuracy: float, haste: float = 0.0, *, section: str) -> None:
        self._teacher, self._section = ScriptedTeacher(accuracy, haste), section

    async def check(self) -> None:
        """It is always there."""

    async def ask(self, request: Request) -> Reply:
        other = (
            f"--{self._section}.kind=program judges pairs of the toy task only; choose "
            f"openai, anthropic or local, with --{self._section}.model"
        )
        if request.example.preference is None:
            raise UserError(f"example {request.example.id!r} has a rendered prompt, and {other}")
        try:
            trace = self._teacher.write(request.example.preference)
        except UserError as error:
            raise UserError(f"{error}; {other}") from error
        return Reply(trace, "stop", 0, 0)

    async def close(self) -> None:
        """It holds nothing."""
