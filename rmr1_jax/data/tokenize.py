"""From chat messages and a trace to tokens, and where among them learning begins.

As published (OpenRLHF's sft_dataset.py with RM-R1's change, spec section 3): the text is the chat
template of the prompt and the trace, right-stripped of line ends, its last token the end of
sequence; the loss begins after the template of the prompt without generation prompt, so that the
assistant header is learnt as well. Without the header it begins after the generation prompt.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from jinja2.exceptions import TemplateError

from rmr1_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, str]]
Overlong = Literal["truncate", "drop"]
Reason = Literal["no_trace", "template_refuses", "prompt_too_long", "too_long"]
REASONS: tuple[Reason, ...] = ("no_trace", "template_refuses", "prompt_too_long", "too_long")

_VERDICT = re.compile(r"\[\[([AB])\]\]")
_THINK = "<think>"


class Tokenized(NamedTuple):
    """Tokens of prompt and trace; the loss covers those from `loss_from` on.

    `verdict` is the index of the token that holds the letter of the last [[A]] or [[B]] of the
    trace, -1 where there is none (left).
    """

    tokens: Int[np.ndarray, " T"]
    loss_from: int
    verdict: int
    truncated: bool


class Refusal(NamedTuple):
    """Why an example cannot be learnt from."""

    reason: Reason
    detail: str


@dataclass(frozen=True)
class TokenizeOptions:
    """How long a sequence may be (tokens), what becomes of a longer one, and what is learnt."""

    max_length: int
    loss_on_header: bool = True
    overlong: Overlong = "truncate"


class Rendered(NamedTuple):
    """A conversation as text; the loss covers the characters from `boundary` on."""

    text: str
    boundary: int
    trace_start: int


def check_template(tokenizer: "PreTrainedTokenizerBase", messages: Messages) -> None:
    """Refuse a tokenizer or a chat template that cannot render such messages. Raises UserError."""
    if not tokenizer.is_fast:
        raise UserError(
            "the checkpoint has no fast tokenizer; add its tokenizer.json "
            "(AutoTokenizer.from_pretrained(...).save_pretrained writes one)"
        )
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer names no eos_token; name it in tokenizer_config.json")
    if tokenizer.chat_template is None:
        raise UserError(
            "the tokenizer has no chat template; add chat_template.jinja or the field "
            "chat_template of tokenizer_config.json from the instruct model"
        )
    try:
        render(tokenizer, messages, "[[A]]", loss_on_header=True)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        fix = "take another checkpoint or mend its chat template"
        if any(message["role"] == "system" for message in messages):
            fix = (
                "use a prompt without system message (reasoning), or a checkpoint whose chat "
                "template takes one"
            )
        raise UserError(f"the chat template refuses messages of {roles} ({error}); {fix}") from (
            error
        )


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Messages, trace: str, *, loss_on_header: bool
) -> Rendered:
    """The text that is learnt. Raises jinja2's TemplateError where the template refuses.

    Some templates do not give a trace back as it was: those of R1-distilled models cut out all up
    to `</think>`, as is right for the history of a chat, and newer ones open `<think>` in the
    generation prompt only. There the text is what generation would make of it: the prompt with
    generation prompt, the trace, the end of sequence.
    """
    prompt = chat_text(tokenizer, messages)
    asked = chat_text(tokenizer, messages, add_generation_prompt=True)
    answer = {"role": "assistant", "content": trace}
    text = chat_text(tokenizer, [*messages, answer]).rstrip("\n")
    trace_start = text.rfind(trace.strip())
    if trace_start < len(asked) or not text.startswith(asked):
        if asked.rstrip().endswith(_THINK) and trace.lstrip().startswith(_THINK):
            trace = trace.lstrip().removeprefix(_THINK).removeprefix("\n")
        text, trace_start = asked + trace + tokenizer.eos_token, len(asked)
    boundary = len(asked)
    if loss_on_header and text.startswith(prompt):
        boundary = len(prompt)
    return Rendered(text, boundary, trace_start)


def chat_text(
    tokenizer: "PreTrainedTokenizerBase", messages: Messages, *, add_generation_prompt: bool = False
) -> str:
    """Messages in the chat template, which writes the special tokens: tokenise without adding any.

    Raises jinja2's TemplateError where the template refuses.
    """
    text = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return str(text)


def tokenize(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Messages,
    trace: str | None,
    *,
    max_length: int,
    loss_on_header: bool = True,
    overlong: Overlong = "truncate",
) -> Tokenized | Refusal:
    """Tokens of one example; see `tokenize_all`."""
    options = TokenizeOptions(max_length, loss_on_header, overlong)
    return tokenize_all(tokenizer, [(messages, trace)], options)[0]


def tokenize_all(
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[tuple[Messages, str | None]],
    options: TokenizeOptions,
) -> list[Tokenized | Refusal]:
    """Tokens of (messages, trace) each; a fast tokenizer shares them among its threads.

    A prompt of max_length - 2 tokens or more is refused, as published. A longer sequence is
    truncated, and ends with the end of sequence as published, or refused.
    """
    results: dict[int, Tokenized | Refusal] = {}
    rendered: dict[int, Rendered] = {}
    for index, (messages, trace) in enumerate(examples):
        if trace is None or not trace.strip():
            results[index] = Refusal("no_trace", "there is no trace to learn")
            continue
        try:
            rendered[index] = render(
                tokenizer, messages, trace, loss_on_header=options.loss_on_header
            )
        except TemplateError as error:
            results[index] = Refusal("template_refuses", str(error))
    if rendered:
        # The template has written the special tokens; adding them again would double the BOS.
        encoded = tokenizer(
            [text.text for text in rendered.values()],
            add_special_tokens=False,
            return_attention_mask=False,
        )
        assert encoded.encodings is not None  # of a fast tokenizer
        for (index, text), encoding in zip(rendered.items(), encoded.encodings, strict=True):
            results[index] = _cut(text, encoding, tokenizer.eos_token_id, options)
    return [results[index] for index in range(len(examples))]


def _cut(
    rendered: Rendered, encoding: Any, eos: int, options: TokenizeOptions
) -> Tokenized | Refusal:
    text, boundary, trace_start = rendered
    tokens = np.array(encoding.ids, np.int32)
    # By characters: a token that a merge drew across the boundary belongs to what is learnt.
    loss_from = max(_token_at(encoding, boundary, len(text)), 1)
    if loss_from >= options.max_length - 2:
        return Refusal(
            "prompt_too_long",
            f"the prompt has {loss_from} tokens; at most {options.max_length - 3} leave room for a "
            "trace",
        )
    if tokens[-1] != eos:
        tokens = np.append(tokens, np.int32(eos))
    truncated = len(tokens) > options.max_length
    if truncated and options.overlong == "drop":
        return Refusal(
            "too_long",
            f"prompt and trace have {len(tokens)} tokens, more than {options.max_length}",
        )
    tokens = tokens[: options.max_length]
    tokens[-1] = eos
    verdict = -1
    if found := list(_VERDICT.finditer(text, trace_start)):
        verdict = _token_at(encoding, found[-1].start(1), len(text))
        if verdict >= len(tokens) - 1:  # cut off, or where the end of sequence now stands
            verdict = -1
    return Tokenized(tokens, loss_from, verdict, truncated)


def _token_at(encoding: Any, character: int, end: int) -> int:
    """The token that holds a character, or the next one that any token holds."""
    for place in range(character, end):
        if (token := encoding.char_to_token(place)) is not None:
            return int(token)
    return len(encoding.ids)
