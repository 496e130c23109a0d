"""From a preference to the chat messages a judge reads.

RM-R1 has two styles: instruct models get the chain-of-rubrics system message and the
pair as user message, R1-distilled models one user message and no system message.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from rmr1_jax.errors import UserError
from rmr1_jax.judging.preference import Message, Preference, Side

PromptStyle = Literal["chain_of_rubrics", "reasoning"]

# Equal to the published templates, character for character: the tests compare SHA-256.
PAIR_SINGLE_TURN = """\
[Client Question]
{question}

[The Start of Chatbot A's Response]
{answer_a}
[The End of Chatbot A's Response]

[The Start of Chatbot B's Response]
{answer_b}
[The End of Chatbot B's Response]"""

PAIR_MULTI_TURN = """\
[The Start of the Conversation between Chatbot A and the Client]
{conversation_1}
[The End of the Conversation between Chatbot A and the Client]

[The Start of the Conversation between Chatbot B and the Client]
{conversation_2}
[The End of the Conversation between Chatbot B and the Client]"""

# The published wording of these two is not at hand: same blocks and demand, our own sentences.
_REASONING = """\
Please act as an impartial judge and decide which of the two Chatbots below serves the Client \
better.

{pair}

End your reply with your verdict and nothing after it: <answer>[[A]]</answer> if Chatbot A is \
better, or <answer>[[B]]</answer> if Chatbot B is better."""
REASONING_SINGLE_TURN = _REASONING.replace("{pair}", PAIR_SINGLE_TURN)
REASONING_MULTI_TURN = _REASONING.replace("{pair}", PAIR_MULTI_TURN)


@dataclass(frozen=True)
class JudgePrompt:
    """How a judge is asked. `system` is the system message, None for reasoning models."""

    style: PromptStyle
    system: str | None

    @property
    def sha256(self) -> str:
        """Hex digest of the system message, or of the single-turn template where there is none."""
        text = REASONING_SINGLE_TURN if self.system is None else self.system
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    @property
    def is_built_in(self) -> bool:
        """Whether its style alone says what it is."""
        return self.system is None or self.system == chain_of_rubrics().system

    def messages(self, preference: Preference) -> list[dict[str, str]]:
        """The chat messages to render with the model's chat template.

        A lone user message is shown as the question. A longer context, or two that differ, is shown
        as two whole conversations.
        """
        if self.system is None:
            user = _fill(REASONING_SINGLE_TURN, REASONING_MULTI_TURN, preference)
            return [{"role": "user", "content": user}]
        user = _fill(PAIR_SINGLE_TURN, PAIR_MULTI_TURN, preference)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


def chain_of_rubrics() -> JudgePrompt:
    """The built-in prompt for instruct models."""
    file = resources.files("rmr1_jax.judging") / "chain_of_rubrics.txt"
    return JudgePrompt("chain_of_rubrics", file.read_bytes().decode("utf-8"))


def reasoning() -> JudgePrompt:
    """The built-in prompt for R1-distilled models."""
    return JudgePrompt("reasoning", None)


def load_prompt(spec: str) -> JudgePrompt:
    """A built-in prompt by name, or a system message from a file.

    A `.json` or `.jsonl` file is a data set: the system message of the first record's
    `context_messages` is taken. Any other file is the system message itself, byte for byte.
    Raises UserError.
    """
    if spec == "chain_of_rubrics":
        return chain_of_rubrics()
    if spec == "reasoning":
        return reasoning()
    path = Path(spec)
    try:
        if path.suffix == ".jsonl":
            with path.open("rb") as file:
                raw = file.readline()
        else:
            raw = path.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise UserError(
            f"prompt {spec!r}: cannot be read ({error.strerror}); "
            "give chain_of_rubrics, reasoning, or the path of a file"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"prompt {spec!r}: is not UTF-8 text; save it as UTF-8") from error
    if path.suffix in (".json", ".jsonl"):
        text = _system_message(text, spec)
    if not text.strip():
        raise UserError(f"prompt {spec!r}: is empty; it must hold the system message")
    return JudgePrompt("chain_of_rubrics", text)


def _system_message(text: str, spec: str) -> str:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"prompt {spec!r}: is not JSON ({error}); "
            "give a .json or .jsonl data set, or the prompt alone in a .txt file"
        ) from error
    if isinstance(record, list):
        record = record[0] if record else None
    messages = record.get("context_messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        raise UserError(
            f"prompt {spec!r}: its first record has no list of messages named context_messages; "
            "give one of the released data sets, or the prompt alone in a .txt file"
        )
    for message in messages:
        if message.get("role") == "system" and isinstance(message.get("content"), str):
            return str(message["content"])
    if [message.get("role") for message in messages] == ["user"]:
        raise UserError(
            f"prompt {spec!r}: its first record is a lone user message, as in the data for "
            "reasoning models, and holds no system message; give a data set for instruct models, "
            "or use the built-in prompt: reasoning"
        )
    raise UserError(f"prompt {spec!r}: its first context_messages hold no system text")


def _fill(single_turn: str, multi_turn: str, preference: Preference) -> str:
    # str.format leaves braces inside the inserted texts alone.
    if len(preference.context) == 1 and preference.context_b is None:
        return single_turn.format(
            question=preference.context[0].content,
            answer_a=preference.response_a,
            answer_b=preference.response_b,
        )
    context_b = preference.context if preference.context_b is None else preference.context_b
    return multi_turn.format(
        conversation_1=_conversation(preference.context, preference.response_a, "A"),
        conversation_2=_conversation(context_b, preference.response_b, "B"),
    )


def _conversation(context: tuple[Message, ...], response: str, side: Side) -> str:
    # The published data script misspells B's name exactly where A wins, which gives the label away
    # (mix_data.py, line 168); here the name depends on the side alone.
    names = {"system": "System", "user": "User", "assistant": f"Chatbot {side}"}
    messages = (*context, Message("assistant", response))
    return "\n".join(f"{names[message.role]}: {message.content}" for message in messages)
