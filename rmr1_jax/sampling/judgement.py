"""Judgements, and how they are read from sampled tokens."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from rmr1_jax.judging import Problem, Side, parse
from rmr1_jax.sampling.scheduler import Sample


@dataclass(frozen=True)
class Judgement:
    """One trace about one preference.

    `verdict` follows the published evaluation rule (brackets anywhere in the trace, spec §5.1).
    `logprob` is the sum of the log-probabilities (nats) of the trace's tokens, including its end,
    under the model at temperature 1.
    `confidence` is P(A) / (P(A) + P(B)) under the model at temperature 1, at the token of the
    verdict. It is None without a verdict, or if the two verdicts differ in more than one token.
    `forced` says that the trace reached its budget and was closed to get a verdict.
    """

    verdict: Side | None
    problem: Problem | None
    type: str | None
    rubric: str | None
    solution: str | None
    evaluation: str | None
    trace: str
    prompt_tokens: int
    trace_tokens: int  # written by the model
    finish_reason: Literal["stop", "length"] | None
    logprob: float | None
    confidence: float | None = None
    forced: bool = False


class Reader:
    """Reads judgements from samples.

    Attributes:
      compare_ids: the tokens for A and B in a verdict, or None if they are not single tokens.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        a, b = (self.encode(f"<answer>[[{side}]]</answer>") for side in "AB")
        differing = [pair for pair in zip(a, b, strict=False) if pair[0] != pair[1]]
        one_token = len(a) == len(b) and len(differing) == 1
        self.compare_ids: tuple[int, int] | None = differing[0] if one_token else None

    def encode(self, text: str) -> list[int]:
        # The chat template already has the special tokens; adding them would double the BOS.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, tokens: Int[np.ndarray, "n"]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def judgement(self, sample: Sample, prompt_tokens: int, closing: int = 0) -> Judgement:
        """Read a trace that contains `closing` tokens added to force its verdict."""
        trace = self.text(sample.tokens)
        parsed = parse(trace, "evaluation")
        problem: Problem | None = parsed.problem
        if problem == "none" and sample.finish_reason == "length" and not closing:
            problem = "truncated"
        return Judgement(
            verdict=parsed.verdict,
            problem=problem,
            type=parsed.type,
            rubric=parsed.rubric,
            solution=parsed.solution,
            evaluation=parsed.evaluation,
            trace=trace,
            prompt_tokens=prompt_tokens,
            trace_tokens=len(sample.tokens) - closing,
            finish_reason=sample.finish_reason,
            logprob=float(sample.logprobs.sum()),
            confidence=parsed.verdict and self._confidence(sample, trace, parsed.verdict),
            forced=closing > 0,
        )

    def _confidence(self, sample: Sample, trace: str, verdict: Side) -> float | None:
        """The probability of A against B at the letter of the last verdict."""
        letter = trace.rindex(f"[[{verdict}]]") + 2
        # The first token whose text reaches past the letter.
        drawn = bisect_right(
            range(len(sample.tokens)), letter, key=lambda n: len(self.text(sample.tokens[: n + 1]))
        )
        if (
            self.compare_ids is None
            or int(sample.tokens[drawn]) != self.compare_ids["AB".index(verdict)]
        ):
            return None
        log_odds = float(sample.logit_diffs[drawn])
        return 0.5 * (1.0 + math.tanh(log_odds / 2))  # the logistic function


def too_long(prompt_tokens: int) -> Judgement:
    """The judgement for a prompt that does not fit the context."""
    return Judgement(
        verdict=None,
        problem="prompt_too_long",
        type=None,
        rubric=None,
        solution=None,
        evaluation=None,
        trace="",
        prompt_tokens=prompt_tokens,
        trace_tokens=0,
        finish_reason=None,
        logprob=None,
    )
