"""From sampled tokens to a judgement."""

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
    `logprob` is the sum of the log-probabilities (nats) of the trace's tokens, its end included,
    under the model at temperature 1.
    `confidence` is P(A) / (P(A) + P(B)) under the model at temperature 1, where it wrote its
    verdict; None without a verdict, or where the two verdicts are not one token apart.
    `forced`: the trace was cut at its budget, closed by us, and the verdict asked for once more.
    """

    verdict: Side | None
    problem: Problem | None
    type: str | None
    rubric: str | None
    solution: str | None
    evaluation: str | None
    trace: str
    prompt_tokens: int
    trace_tokens: int  # that the model wrote
    finish_reason: Literal["stop", "length"] | None
    logprob: float | None
    confidence: float | None = None
    forced: bool = False


class Reader:
    """Reads what a model has sampled.

    Attributes:
      compare_ids: the tokens by which the verdicts A and B differ, None if it is not one token.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        a, b = (self.encode(f"<answer>[[{side}]]</answer>") for side in "AB")
        differing = [pair for pair in zip(a, b, strict=False) if pair[0] != pair[1]]
        one_token = len(a) == len(b) and len(differing) == 1
        self.compare_ids: tuple[int, int] | None = differing[0] if one_token else None

    def encode(self, text: str) -> list[int]:
        # A chat template has written the special tokens; adding them again would double the BOS.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, tokens: Int[np.ndarray, "n"]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def judgement(self, sample: Sample, prompt_tokens: int, closing: int = 0) -> Judgement:
        """Read a trace, `closing` tokens of which were put there to force its verdict."""
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
        """The log-odds of A against B where the letter of the last verdict was drawn."""
        letter = trace.rindex(f"[[{verdict}]]") + 2
        # The first token with which the text reaches beyond the letter.
        drawn = bisect_right(
            range(len(sample.tokens)), letter, key=lambda n: len(self.text(sample.tokens[: n + 1]))
        )
        if (
            self.compare_ids is None
            or int(sample.tokens[drawn]) != self.compare_ids["AB".index(verdict)]
        ):
            return None
        return 0.5 * (
            1.0 + math.tanh(float(sample.logit_diffs[drawn]) / 2)
        )  # the logistic function


def too_long(prompt_tokens: int) -> Judgement:
    """What stands for a judgement where the prompt does not fit the context."""
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
