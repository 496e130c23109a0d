"""The words and the rules of two-pass distillation: what teacher 2 is told, and what is kept.

Pass 1 keeps by the published rule (process_anthropic_first_time.py). For pass 2 the original has a
prompt but no validation; both are in our words here.
"""

import re

from rmr1_jax.judging import Side, accepted_by_distillation, answer, parse
from rmr1_jax.judging.preference import other_side
from rmr1_jax.synthesis.teachers import Reply

# What only somebody writes who was shown the verdict and the earlier trace.
_LEAKS = {
    "mentions an earlier judgement": (
        r"\b(?:previous|prior|earlier|wrong|incorrect|mistaken|flawed)\W+(?:wrong\W+)?judge?ments?\b"
    ),
    "mentions a verdict that was given": (
        r"\b(?:correct|right|true|known|given|provided|expected|stated)\s+verdict\b"
    ),
    "mentions a label": r"\b(?:ground[- ]truth|gold|correct|given)\s+label\b",
    "mentions the note": r"\bnote\s+to\s+the\s+judge\b",
    "says that it was told": (
        r"\b(?:told|informed|instructed|given)\s+that\s+(?:the\s+)?(?:chatbot|response|answer)?\s*"
        r"[AB](?:'s\s+\w+)?\s+(?:is|was|wins|should)\b"
    ),
}
_LEAK = {reason: re.compile(pattern, re.IGNORECASE) for reason, pattern in _LEAKS.items()}
# A response may itself speak of judgements and labels, and a trace may quote it.
_QUOTE = re.compile(r"<(quote_[AB])>.*?</\1>", re.DOTALL)

_SECTIONS = {
    "Reasoning": ("solution", "eval"),
    "Chat": ("rubric", "justify", "eval"),
}


def second_messages(
    messages: list[dict[str, str]], label: Side, wrong_trace: str
) -> list[dict[str, str]]:
    """Pass 2: the messages of pass 1 with an appendix to the user's (spec §1.6).

    It states the correct verdict, asks for a thorough trace that explains it, and attaches the
    wrong one.
    """
    *before, user = messages
    other = other_side(label)
    wrong = wrong_trace.strip() or "(It was empty.)"
    appendix = f"""

[Note to the Judge]
The correct verdict for this pair is [[{label}]]: Chatbot {label}'s response is the better one. \
Write a thorough, high-quality judgement that follows every guideline and the output format above \
and makes clear why Chatbot {label}'s response is better than Chatbot {other}'s. Write it as your \
own independent judgement: mention neither this note nor the judgement below, which came to a \
wrong end.

[The Start of the Previous (Wrong) Judgement]
{wrong}
[The End of the Previous (Wrong) Judgement]"""
    return [*before, {"role": user["role"], "content": user["content"] + appendix}]


def first_problem(reply: Reply, label: Side) -> str | None:
    """Why pass 1 does not keep a trace; None if it does.

    The published rule, and the trace must not be cut off: RM-R1's accepts such a one where it
    happens to name the verdict in its last 100 characters.
    """
    if reply.finish_reason == "length":
        return "cut off at max_new_tokens"
    if accepted_by_distillation(reply.text, label):
        return None
    if reply.finish_reason != "stop":
        return f"ended by {reply.finish_reason}"
    return "wrong verdict" if answer(reply.text, "distillation").verdict else "no verdict"


def second_problem(reply: Reply, label: Side, *, has_rubrics: bool) -> str | None:
    """Why pass 2 does not keep a trace; None if it does.

    Checked in this order: not cut off; the labelled verdict and no other near the end; all sections
    that the type asks for, closed (chain-of-rubrics prompts only); the answer tag last; nothing
    that betrays that the verdict was given.
    """
    if reply.finish_reason != "stop":
        cut = reply.finish_reason == "length"
        return "cut off at max_new_tokens" if cut else f"ended by {reply.finish_reason}"
    found = answer(reply.text, "distillation")
    if found.verdict != label:
        return {"both": "two verdicts", "none": "no verdict"}.get(
            found.problem or "", "wrong verdict"
        )
    if has_rubrics and (missing := _missing_section(reply.text)):
        return f"no <{missing}>"
    if not reply.text.rstrip().endswith(f"<answer>[[{label}]]</answer>"):
        return "does not end with the answer tag"
    return _leak(reply.text)


def _missing_section(text: str) -> str | None:
    judgement = parse(text, "distillation")
    if judgement.type is None:
        return "type"
    parts = {
        "solution": judgement.solution,
        "rubric": judgement.rubric,
        "justify": judgement.justify,
        "eval": judgement.evaluation,
    }
    for name in _SECTIONS[judgement.type]:
        if not parts[name] or f"</{name}>" not in text:
            return name
    return None


def _leak(text: str) -> str | None:
    text = _QUOTE.sub(" ", text)
    for reason, pattern in _LEAK.items():
        if pattern.search(text):
            return reason
    return None
