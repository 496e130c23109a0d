"""A preference: one conversation, two responses to it, and which of them won."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rmr1_jax.errors import UserError

Side = Literal["A", "B"]
Role = Literal["system", "user", "assistant"]

# JSON can spell characters that no tokenizer and no UTF-8 file takes.
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


class RecordError(UserError):
    """A record that is no preference: `field` is where, `reason` is what was found and the fix."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Preference:
    """Two responses to one conversation.

    `context` ends with the user message that both responses answer. `context_b` is set only where
    response B ends another conversation than response A, as in some multi-turn data sets.
    """

    id: str
    context: tuple[Message, ...]
    response_a: str
    response_b: str
    label: Side | None = None
    context_b: tuple[Message, ...] | None = None

    def swapped(self) -> "Preference":
        """The same pair with A and B exchanged, label included."""
        context, context_b = self.context, self.context_b
        if context_b is not None:
            context, context_b = context_b, context
        return Preference(
            id=self.id,
            context=context,
            response_a=self.response_b,
            response_b=self.response_a,
            label=None if self.label is None else other_side(self.label),
            context_b=context_b,
        )


def other_side(side: Side) -> Side:
    return "B" if side == "A" else "A"


def parse_label(label: str) -> Side:
    """A label as we write it ("A", "B") or as the released data do ("model_a", "model_b")."""
    if label in ("A", "model_a"):
        return "A"
    if label in ("B", "model_b"):
        return "B"
    raise UserError(f"label {_shown(label)} is unknown; it must be A, B, model_a or model_b")


def chosen_side(id: str) -> Side:
    """Where the chosen response of a chosen/rejected pair goes: A if SHA-256 of its id is even.

    Fixed by the id alone, so the order is the same in every run and says nothing about the text.
    """
    return "A" if hashlib.sha256(id.encode("utf-8")).digest()[-1] % 2 == 0 else "B"


def preference_from_record(record: object, *, default_id: str) -> Preference:
    """Read one record of a data set.

    Two layouts are known; other fields are ignored:
      - "question" (text) or "conversation" (messages), "response_a", "response_b", and optionally
        "label" ("A" or "B");
      - "prompt", "chosen", "rejected", each a text or messages. Messages in chosen and rejected may
        hold the whole conversation, and then "prompt" may be absent. The label is `chosen_side`.
    "id" is optional in both. NUL and lone surrogates become U+FFFD. Two identical responses are
    let through, as published benchmarks have some.

    Raises RecordError.
    """
    if not isinstance(record, Mapping):
        raise RecordError("record", f"is {_shown(record)}; it must be an object with named fields")
    # A table has every column in every row: null is absent.
    record = {name: value for name, value in record.items() if value is not None}
    id = _id(record.get("id"), default_id)
    if "response_a" in record or "response_b" in record:
        return _from_responses(record, id)
    if "chosen" in record or "rejected" in record:
        return _from_chosen(record, id)
    raise RecordError(
        "response_a",
        "is missing; give response_a and response_b with question or conversation, "
        "or prompt, chosen and rejected",
    )


def _from_responses(record: Mapping[str, object], id: str) -> Preference:
    if ("question" in record) == ("conversation" in record):
        found = "and conversation are both given" if "question" in record else "is missing"
        raise RecordError("question", f"{found}; give either question or conversation")
    if "question" in record:
        question = Message("user", _text(record["question"], "question"))
        context: tuple[Message, ...] = (question,)
    else:
        context = _messages(record["conversation"], "conversation")
    label = record.get("label")
    if label not in ("A", "B", None):
        raise RecordError("label", f'is {_shown(label)}; it must be "A", "B" or left out')
    return Preference(
        id=id,
        context=_question(context, "conversation"),
        response_a=_text(record.get("response_a"), "response_a"),
        response_b=_text(record.get("response_b"), "response_b"),
        label="A" if label == "A" else "B" if label == "B" else None,
    )


def _from_chosen(record: Mapping[str, object], id: str) -> Preference:
    prompt: tuple[Message, ...] = ()
    if "prompt" in record:
        prompt = _text_or_messages(record["prompt"], "prompt", "user")
    chosen_context, chosen = _conversation(record, "chosen", prompt)
    rejected_context, rejected = _conversation(record, "rejected", prompt)
    preference = Preference(
        id=id,
        context=chosen_context,
        response_a=chosen,
        response_b=rejected,
        label="A",
        context_b=None if chosen_context == rejected_context else rejected_context,
    )
    return preference if chosen_side(id) == "A" else preference.swapped()


def _conversation(
    record: Mapping[str, object], field: str, prompt: tuple[Message, ...]
) -> tuple[tuple[Message, ...], str]:
    """(context, response) of `chosen` or `rejected`, which may or may not repeat the prompt."""
    messages = _text_or_messages(record.get(field), field, "assistant")
    repeats_prompt = messages[: len(prompt)] == prompt
    if messages[0].role == "assistant" and not repeats_prompt:
        messages = prompt + messages
    elif not set(prompt) <= set(messages):
        raise RecordError(
            field,
            "is a conversation that does not contain prompt; "
            "leave prompt out, or give only the answer here",
        )
    last = messages[-1]
    if last.role != "assistant":
        raise RecordError(
            field, f"the last message has role {last.role}; it must be the assistant's response"
        )
    missing = "prompt" if len(messages) == 1 else field
    return _question(messages[:-1], missing), _text(last.content, field)


def _question(context: tuple[Message, ...], field: str) -> tuple[Message, ...]:
    if not context:
        raise RecordError(field, "is missing; there must be a user message to respond to")
    if context[-1].role != "user":
        raise RecordError(
            field,
            f"the message before the response has role {context[-1].role}; it must be user",
        )
    _text(context[-1].content, field)
    return context


def _text_or_messages(value: object, field: str, role: Role) -> tuple[Message, ...]:
    if isinstance(value, list):
        return _messages(value, field)
    return (Message(role, _text(value, field)),)


def _messages(value: object, field: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise RecordError(
            field, f'is {_shown(value)}; it must be a list of {{"role", "content"}} messages'
        )
    return tuple(_message(item, f"{field}[{index}]") for index, item in enumerate(value))


def _message(value: object, field: str) -> Message:
    if not isinstance(value, Mapping):
        raise RecordError(field, f'is {_shown(value)}; it must be {{"role", "content"}}')
    role, content = value.get("role"), value.get("content")
    if not isinstance(content, str):
        raise RecordError(f"{field}.content", f"is {_shown(content)}; it must be a text")
    content = _clean(content)
    if role == "user":
        return Message("user", content)
    if role == "assistant":
        return Message("assistant", content)
    if role == "system":
        return Message("system", content)
    raise RecordError(f"{field}.role", f"is {_shown(role)}; it must be system, user or assistant")


def _text(value: object, field: str) -> str:
    if value is None:
        raise RecordError(field, "is missing; it must be a text")
    if not isinstance(value, str):
        raise RecordError(field, f"is {_shown(value)}; it must be a text")
    if not value.strip():
        raise RecordError(field, "is empty; it must hold some text")
    return _clean(value)


def _id(value: object, default: str) -> str:
    if value is None:
        return default
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, "id")


def _clean(text: str) -> str:
    return _UNWRITABLE.sub("\ufffd", text)


def _shown(value: object) -> str:
    """A value as an error message shows it: JSON's word for its kind, and a scalar itself."""
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return "an object"
    if value is None:
        return "missing"
    return repr(value[:40] if isinstance(value, str) else value)
