"""What a judgement is: preferences, prompts, verdicts, rewards, votes. Pure Python."""

from rmr1_jax.judging.preference import (
    Message,
    Preference,
    RecordError,
    Role,
    Side,
    preference_from_record,
)
from rmr1_jax.judging.prompts import (
    JudgePrompt,
    PromptStyle,
    chain_of_rubrics,
    load_prompt,
    reasoning,
)
from rmr1_jax.judging.verdict import (
    Answer,
    Problem,
    Quote,
    Verdict,
    Window,
    accepted_by_distillation,
    answer,
    parse,
    reward,
)
from rmr1_jax.judging.voting import Orders, Vote, combine_orders, majority, unswap

__all__ = [
    "Answer",
    "JudgePrompt",
    "Message",
    "Orders",
    "Preference",
    "Problem",
    "PromptStyle",
    "Quote",
    "RecordError",
    "Role",
    "Side",
    "Verdict",
    "Vote",
    "Window",
    "accepted_by_distillation",
    "answer",
    "chain_of_rubrics",
    "combine_orders",
    "load_prompt",
    "majority",
    "parse",
    "preference_from_record",
    "reasoning",
    "reward",
    "unswap",
]
