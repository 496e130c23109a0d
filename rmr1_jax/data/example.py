"""What training data are made of: a pair to judge, and the trace to learn where there is one."""

from dataclasses import dataclass

from rmr1_jax.judging import JudgePrompt, Message, Preference, Side


@dataclass(frozen=True)
class Example:
    """A pair to judge, its label, and perhaps a trace that judges it.

    Either `preference` is given, and a `JudgePrompt` renders it, or `prompt` holds the messages as
    a released data set (`gaotang/RM-R1-*`) has them rendered, and `preference` is None.
    `label` is None only where a released trace gives no verdict to take it from.
    """

    id: str
    source: str
    label: Side | None
    preference: Preference | None = None
    prompt: tuple[Message, ...] = ()
    trace: str | None = None

    def __post_init__(self) -> None:
        if (self.preference is None) == (not self.prompt):
            raise ValueError(f"example {self.id!r} needs either a preference or a rendered prompt")

    def messages(self, prompt: JudgePrompt) -> list[dict[str, str]]:
        """The chat messages that the judge reads; `prompt` is not asked where they are rendered."""
        if self.preference is not None:
            return prompt.messages(self.preference)
        return [{"role": message.role, "content": message.content} for message in self.prompt]
