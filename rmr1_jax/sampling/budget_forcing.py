"""Budget forcing: close a trace that reached its budget, and ask for its verdict.

After Muennighoff et al., "s1: Simple test-time scaling" (arXiv 2501.19393), §3.1: to stop thinking
at a budget, append the end of thinking and let the model answer with what it has.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rmr1_jax.judging import PromptStyle
from rmr1_jax.sampling.judgement import Judgement, Reader
from rmr1_jax.sampling.scheduler import Sample

CLOSING: dict[PromptStyle, str] = {
    "chain_of_rubrics": "\n\n<answer>[[",
    "reasoning": "\n</think>\n\n<answer>[[",
}
FORCED_TOKENS = 8  # enough for `A]]</answer>` and the end of turn
# How many preferences with cut traces are collected for one pass; a killed run loses these.
CUT_AT_ONCE = 64


@dataclass(frozen=True)
class Judged:
    """A preference with its samples and their judgements."""

    position: int
    prompt: list[int]
    samples: list[Sample]
    judgements: list[Judgement]

    @property
    def is_cut(self) -> bool:
        return any(judgement.problem == "truncated" for judgement in self.judgements)


def force_verdicts(
    cut: Sequence[Judged],
    ask: Callable[[list[list[int]]], Iterable[tuple[int, list[Sample]]]],
    *,
    style: PromptStyle,
    reader: Reader,
    max_context: int,
) -> Iterator[tuple[int, list[Judgement]]]:
    """Yield (position, judgements) of each preference once its cut traces are closed and judged.

    Args:
      cut: preferences with cut traces.
      ask: continues prompts greedily, and yields (index of the prompt, [continuation]).
      style: of the judge's prompt.
      reader: reads the closed traces.
      max_context: a trace that does not fit with its closing stays truncated.
    """
    asked: list[tuple[Judged, int, list[int]]] = []
    prompts: list[list[int]] = []
    for judged in cut:
        for number, judgement in enumerate(judged.judgements):
            if judgement.problem == "truncated":
                closing = reader.encode(closing_text(style, judgement.trace))
                prompt = [*judged.prompt, *judged.samples[number].tokens.tolist(), *closing]
                if len(prompt) < max_context:
                    asked.append((judged, number, closing))
                    prompts.append(prompt)
    missing = Counter(judged.position for judged, _, _ in asked)
    yield from ((each.position, each.judgements) for each in cut if not missing[each.position])
    for which, [answer] in ask(prompts):
        judged, number, closing = asked[which]
        whole = joined(judged.samples[number], closing, answer)
        judged.judgements[number] = reader.judgement(whole, len(judged.prompt), len(closing))
        missing[judged.position] -= 1
        if not missing[judged.position]:
            yield judged.position, judged.judgements


def closing_text(style: PromptStyle, trace: str) -> str:
    """The text to append to a cut trace: the end of its thinking and the start of a verdict.

    Thinking that has already ended is not ended again.
    """
    return CLOSING["chain_of_rubrics" if "</think>" in trace else style]


def joined(trace: Sample, closing: list[int], answer: Sample) -> Sample:
    """Trace, closing and answer as one sample. The closing has log-probability 0."""
    ours = np.zeros(len(closing), np.float32)
    return Sample(
        tokens=np.concatenate([trace.tokens, np.array(closing, np.int32), answer.tokens]),
        logprobs=np.concatenate([trace.logprobs, ours, answer.logprobs]),
        sampled_logprobs=np.concatenate([trace.sampled_logprobs, ours, answer.sampled_logprobs]),
        logit_diffs=np.concatenate([trace.logit_diffs, ours, answer.logit_diffs]),
        finish_reason=answer.finish_reason,
    )
