"""The layouts that preference data sets are published in, and how each becomes an Example."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rmr1_jax.data.example import Example
from rmr1_jax.judging import (
    Message,
    Preference,
    RecordError,
    Side,
    answer,
    preference_from_record,
)

Record = Mapping[str, Any]

QUESTIONS = ("prompt", "question", "instruction", "input", "query")
_SIDES: dict[str, Side] = {"A": "A", "model_a": "A", "B": "B", "model_b": "B"}
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")

# JSON can spell characters that no tokenizer and no UTF-8 file takes.
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


def example_from_record(record: object, *, source: str, default_id: str) -> Example:
    """Read one record of any known layout; `Example.id` is "source/id".

    Known are the two of `preference_from_record`, and
      - `context_messages` with `winner`: RM-R1's released sets; `winner` is model_a, model_b, or a
        trace, whose label then is `ground_truth` or else its own verdict;
      - `conversations` with `chosen` and `rejected` (ShareGPT's from/value);
      - `chosen` and `rejected` as whole transcripts ("\\n\\nHuman: ... \\n\\nAssistant: ...");
      - `chosen` and `rejected` with the question under another name (question, instruction, ...);
      - `response_a`, `response_b`, `label` with the question as `prompt`;
      - `response_A`, `response_B` and a label like "A>B" (JudgeBench);
      - `input`, `accepted`, `rejected` (Code-Preference-Pairs);
      - `prompt`, `initial_reason_steps`, `full_chosen`, `full_rejected` (Math-Step-DPO).
    Null fields are taken as absent. Raises RecordError, which names the fields of a record of no
    known layout.
    """
    if not isinstance(record, Mapping):
        raise RecordError("record", "is no object with named fields; write one object a line")
    record = {name: value for name, value in record.items() if value is not None}
    if "context_messages" in record:
        return _released(record, source, default_id)
    for recognised, normalise in _LAYOUTS:
        if recognised(record):
            record = normalise(record)
            break
    if not {"response_a", "chosen"} & record.keys():
        raise RecordError("record", f"has no known layout; its fields are {shown_fields(record)}")
    preference = preference_from_record(record, default_id=default_id)
    return example_from_preference(preference, source=source)


def example_from_preference(preference: Preference, *, source: str) -> Example:
    """A labelled pair as an Example. Raises RecordError where the label is missing."""
    if preference.label is None:
        raise RecordError("label", 'is missing; say which response won, "A" or "B"')
    preference = replace(preference, id=f"{source}/{preference.id}")
    return Example(preference.id, source, preference.label, preference)


def shown_fields(record: Record) -> str:
    """The fields of a record as an error message lists them."""
    return ", ".join(map(str, record)) or "none"


def _released(record: Record, source: str, default_id: str) -> Example:
    messages = record["context_messages"]
    if not isinstance(messages, list) or not messages:
        raise RecordError("context_messages", "is no list of messages; it is the judge's prompt")
    winner = record.get("winner")
    if not isinstance(winner, str) or not winner.strip():
        raise RecordError("winner", "is missing; it must be model_a, model_b or a trace")
    label, trace = _side(winner), None
    if label is None:
        trace = _UNWRITABLE.sub("\ufffd", winner)
        given = record.get("ground_truth")
        label = _side(given) if isinstance(given, str) else None
        label = label or answer(trace, "distillation").verdict
    return Example(
        id=f"{source}/{record.get('id', default_id)}",
        source=source,
        label=label,
        prompt=tuple(_message(item, f"context_messages[{n}]") for n, item in enumerate(messages)),
        trace=trace,
    )


def _side(text: str) -> Side | None:
    return _SIDES.get(re.sub(r"</?answer>|[\[\]]", "", text[:100]).strip())


def _message(value: object, field: str) -> Message:
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise RecordError(field, 'must be {"role", "content"}, both texts')
    role = value.get("role")
    if role not in ("system", "user", "assistant"):
        raise RecordError(f"{field}.role", f"is {role!r}; it must be system, user or assistant")
    return Message(role, _UNWRITABLE.sub("\ufffd", value["content"]))


def _sharegpt(record: Record) -> Record:
    turns = record["conversations"]
    return {
        **record,
        "prompt": [_turn(turn) for turn in turns] if isinstance(turns, list) else turns,
        "chosen": _answer(record.get("chosen")),
        "rejected": _answer(record.get("rejected")),
    }


def _turn(turn: object) -> object:
    if not isinstance(turn, Mapping) or "from" not in turn:
        return turn
    return {"role": _ROLES.get(turn["from"], turn["from"]), "content": turn.get("value")}


def _answer(value: object) -> object:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value.get("value") if isinstance(value, Mapping) else value


def _transcripts(record: Record) -> Record:
    return {**record, **{side: transcript(record[side]) for side in ("chosen", "rejected")}}


def transcript(text: str) -> list[dict[str, str]]:
    """The messages of a transcript, "\n\nHuman: ... \n\nAssistant: ..."."""
    _, *parts = _TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def is_transcript(record: Record) -> bool:
    """Whether chosen and rejected are whole conversations in one text each."""
    return not any(name in record for name in QUESTIONS) and all(
        isinstance(text := record.get(side), str) and text.lstrip().startswith("Human:")
        for side in ("chosen", "rejected")
    )


def _judgebench(record: Record) -> Record:
    label = record.get("label")
    return {
        **record,
        "id": record.get("id", record.get("pair_id")),
        "response_a": record.get("response_A"),
        "response_b": record.get("response_B"),
        "label": {"A>B": "A", "B>A": "B"}.get(str(label), label),
    }


def _code(record: Record) -> Record:
    return {"id": record.get("id"), "prompt": record["input"], "chosen": record["accepted"]} | {
        name: record[name] for name in ("rejected",) if name in record
    }


def _math(record: Record) -> Record:
    steps = record.get("initial_reason_steps") or ""
    if not isinstance(steps, str):
        raise RecordError("initial_reason_steps", "must be a text, the steps that both share")
    answers = {
        side: steps + text
        for side in ("chosen", "rejected")
        if isinstance(text := record.get(f"full_{side}"), str)
    }
    return {"id": record.get("id"), "prompt": record.get("prompt"), **answers}


def _other_question(record: Record) -> Record:
    name = next(name for name in QUESTIONS if name in record)
    return {**record, "prompt": record[name]}


def _asked_in_prompt(record: Record) -> Record:
    name = "conversation" if isinstance(record["prompt"], list) else "question"
    return {**record, name: record["prompt"]}


_LAYOUTS: tuple[tuple[Callable[[Record], bool], Callable[[Record], Record]], ...] = (
    (lambda record: "conversations" in record, _sharegpt),
    (lambda record: "response_A" in record, _judgebench),
    (lambda record: "accepted" in record and "input" in record, _code),
    (lambda record: "full_chosen" in record, _math),
    (is_transcript, _transcripts),
    (
        lambda record: (
            "response_a" in record
            and "prompt" in record
            and not {"question", "conversation"} & record.keys()
        ),
        _asked_in_prompt,
    ),
    (
        lambda record: (
            "chosen" in record
            and "prompt" not in record
            and isinstance(record["chosen"], str)
            and any(name in record for name in QUESTIONS)
        ),
        _other_question,
    ),
)
