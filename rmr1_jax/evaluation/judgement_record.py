"""One line of the judge stage's output, and the counts behind its summary."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rmr1_jax.judging import Preference, Side, combine_orders, majority, unswap

if TYPE_CHECKING:
    from rmr1_jax.sampling.judge import Judgement

PROBLEMS = ("none", "both", "truncated", "prompt_too_long")


def judgement_record(
    preference: Preference,
    judgements: Sequence["Judgement"],
    swapped: Sequence["Judgement"] | None = None,
) -> dict[str, Any]:
    """What is written about one pair.

    Args:
      preference: the pair as given.
      judgements: its samples, at least one. With several, `verdict` is their majority and the trace
        is the first that agrees with it (the first of all on a tie).
      swapped: the samples of `preference.swapped()`, if both orders were judged. Then `verdict` is
        given only where both orders choose the same response.

    All verdicts are in terms of the pair as given. Where `verdict` is null, `problem` says why; it
    is null too where the samples tie (see `votes`) or the orders disagree (see `consistent`).
    """
    verdict, shown, problem = _decide(judgements)
    extra: dict[str, object] = {}
    if len(judgements) > 1:
        extra["votes"] = _votes(judgements)
    if swapped is not None:
        second, second_shown, second_problem = _decide(swapped)
        orders = combine_orders(verdict, second)
        verdict, problem = orders.verdict, problem or second_problem
        extra["swapped_verdict"] = unswap(second)
        extra["consistent"] = orders.consistent
        if len(swapped) > 1:
            extra["swapped_votes"] = _votes(swapped, swap=True)
        extra["swapped_trace"] = second_shown.trace
    if preference.label is not None:
        extra = {"label": preference.label, "correct": verdict == preference.label, **extra}
    logprob = shown.logprob
    return {
        "id": preference.id,
        "verdict": verdict,
        "problem": problem,
        "type": shown.type,
        "rubric": shown.rubric,
        "solution": shown.solution,
        "evaluation": shown.evaluation,
        "trace": shown.trace,
        "prompt_tokens": shown.prompt_tokens,
        "trace_tokens": shown.trace_tokens,
        "finish_reason": shown.finish_reason,
        "logprob": logprob if logprob is not None and math.isfinite(logprob) else None,
        **extra,
    }


def _decide(
    judgements: Sequence["Judgement"],
) -> tuple[Side | None, "Judgement", str | None]:
    """(verdict, the judgement to show, problem) of the samples of one order."""
    verdict = majority([judgement.verdict for judgement in judgements]).verdict
    if verdict is None:
        tie = any(judgement.verdict is not None for judgement in judgements)
        return None, judgements[0], None if tie else judgements[0].problem
    return verdict, next(j for j in judgements if j.verdict == verdict), None


def _votes(judgements: Sequence["Judgement"], swap: bool = False) -> dict[str, int]:
    verdicts = [judgement.verdict for judgement in judgements]
    counts = majority([unswap(verdict) for verdict in verdicts] if swap else verdicts).counts
    return {"A": counts["A"], "B": counts["B"], "none": counts[None]}


@dataclass
class Tally:
    """Counts over output records."""

    pairs: int = 0
    verdicts: dict[str, int] = field(default_factory=lambda: {"A": 0, "B": 0})
    problems: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PROBLEMS, 0))
    undecided: int = 0  # the samples tie or the orders disagree
    labelled: int = 0
    correct: int = 0
    both_orders: int = 0
    consistent: int = 0

    def add(self, record: Mapping[str, object]) -> None:
        self.pairs += 1
        verdict, problem = record["verdict"], record["problem"]
        if verdict in ("A", "B"):
            self.verdicts[str(verdict)] += 1
        elif problem in self.problems:
            self.problems[str(problem)] += 1
        else:
            self.undecided += 1
        self.labelled += "correct" in record
        self.correct += record.get("correct") is True
        self.both_orders += "consistent" in record
        self.consistent += record.get("consistent") is True

    def __str__(self) -> str:
        """For example "12 pairs: A 5, B 6, none 1; accuracy 66.7 % (6 of 9 labelled)"."""
        names = {**self.verdicts, **self.problems, "undecided": self.undecided}
        shown = [f"{name} {n}" for name, n in names.items() if n or name in ("A", "B", "none")]
        text = f"{self.pairs} {'pair' if self.pairs == 1 else 'pairs'}: {', '.join(shown)}"
        if self.labelled:
            share = 100 * self.correct / self.labelled
            text += f"; accuracy {share:.1f} % ({self.correct} of {self.labelled} labelled)"
        if self.both_orders:
            text += f"; same verdict in both orders {self.consistent} of {self.both_orders}"
        return text
