"""Two-pass distillation of traces: what is to be asked, what came of it, and what is written.

Nothing here asks anybody. Everything follows from the examples and the log of replies, so a run
that goes on, a run that asked through batch files and one that was never stopped agree.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from rmr1_jax.data.example import Example
from rmr1_jax.errors import UserError
from rmr1_jax.io.atomic_write import atomic_file
from rmr1_jax.judging import JudgePrompt
from rmr1_jax.synthesis.reply_cache import ReplyCache, Spend
from rmr1_jax.synthesis.rules import first_problem, second_messages, second_problem
from rmr1_jax.synthesis.teachers import Reply, Request

Status = Literal["accepted", "rejected", "failed", "open"]


class Examples(Protocol):
    """Random access to examples: a list, or a split of a store."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


@dataclass(frozen=True)
class Outcome:
    """What became of one example.

    Args:
      status: accepted; rejected by the rule of pass 2; failed, where a teacher gave no reply and
        may be asked again; or open, still to be asked in pass `number`.
      number: the pass that this is about.
      reason: why it is rejected or failed.
    """

    example: Example
    status: Status
    number: int
    reply: Reply | None = None
    reason: str | None = None


@dataclass
class Report:
    """Counts over all runs into one output. They add up: pairs = accepted + refused + open."""

    pairs: int = 0
    accepted: Counter[int] = field(default_factory=Counter)  # by pass
    rejected_in_pass_1: Counter[str] = field(default_factory=Counter)  # by reason; asked again
    rejected: Counter[str] = field(default_factory=Counter)  # by reason, in the end
    failed: Counter[str] = field(default_factory=Counter)  # by reason; the next run asks again
    open: int = 0
    spend: dict[int, Spend] = field(default_factory=dict)  # by pass
    teachers: dict[int, str] = field(default_factory=dict)  # by pass
    input_rejects: int = 0  # lines of the input that are no pair
    stopped: str = ""

    @property
    def refused(self) -> int:
        return sum(self.rejected.values()) + sum(self.failed.values())

    @property
    def traces(self) -> int:
        return sum(self.accepted.values())

    def record(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {
            "pairs": self.pairs,
            "traces": self.traces,
            "accepted": {f"pass{number}": self.accepted[number] for number in (1, 2)},
            "rejected_in_pass1": dict(self.rejected_in_pass_1.most_common()),
            "rejected": dict(self.rejected.most_common()),
            "failed": dict(self.failed.most_common()),
            "open": self.open,
            "input_rejects": self.input_rejects,
            "spend": {
                f"pass{number}": {"teacher": self.teachers[number], **vars(spend)}
                for number, spend in self.spend.items()
            },
            "stopped": self.stopped,
        }


class Synthesis:
    """The state of a distillation.

    Args:
      examples: as `check_examples` wants them.
      prompt: how the judge is asked.
      replies: what teachers have answered so far.
      teachers: by pass, what tells its replies from another's: a name, its address and so on.
      names: by pass, how traces name the teacher.
    """

    def __init__(
        self,
        examples: Examples,
        prompt: JudgePrompt,
        replies: ReplyCache,
        *,
        teachers: Mapping[int, Sequence[object]],
        names: Mapping[int, str],
    ) -> None:
        self.examples, self.replies, self.names = examples, replies, dict(names)
        self._prompt, self._teachers = prompt, teachers

    def requests(self, number: int) -> Iterator[Request]:
        """What pass 1 or 2 still has to ask, in the order of the input.

        Pass 2 knows only what the log holds at that moment: ask pass 1 first.
        """
        for example in self._each():
            request = self._open_request(example, number)
            if request is not None:
                yield request

    def find(self, number: int, keys: set[str]) -> Iterator[Request]:
        """The requests of a pass with these keys, answered or not."""
        for example in self._each():
            request = self._first(example)
            if number == 2:
                reply = self.replies.get(request.key)
                if reply is None:
                    continue
                request = self._second(request, reply)
            if request.key in keys:
                yield request

    def problem(self, number: int, request: Request, reply: Reply) -> str | None:
        """Why a reply is not kept; None if it is."""
        label = _label(request.example)
        if number == 1:
            return first_problem(reply, label)
        has_rubrics = request.messages[0]["role"] == "system"
        return second_problem(reply, label, has_rubrics=has_rubrics)

    def outcomes(self) -> Iterator[Outcome]:
        """What became of each example, in the order of the input."""
        return map(self.outcome, self._each())

    def outcome(self, example: Example) -> Outcome:
        request = self._first(example)
        reply, number = self.replies.get(request.key), 1
        if reply is not None:
            if self.problem(1, request, reply) is None:
                return Outcome(example, "accepted", 1, reply)
            request, number = self._second(request, reply), 2
            reply = self.replies.get(request.key)
        if reply is None:
            failure = self.replies.failure(request.key)
            return Outcome(example, "failed" if failure else "open", number, None, failure)
        problem = self.problem(2, request, reply)
        return Outcome(example, "rejected" if problem else "accepted", 2, reply, problem)

    def report(self, *, stopped: str = "", input_rejects: int = 0) -> Report:
        """Count what became of all examples."""
        report = Report(
            spend=self.replies.spend,
            teachers=self.names,
            input_rejects=input_rejects,
            stopped=stopped,
        )
        for outcome in self.outcomes():
            report.pairs += 1
            if outcome.number == 2:
                report.rejected_in_pass_1[self._first_reason(outcome.example)] += 1
            if outcome.status == "accepted":
                report.accepted[outcome.number] += 1
            elif outcome.status == "open":
                report.open += 1
            else:
                counts = report.rejected if outcome.status == "rejected" else report.failed
                counts[outcome.reason or ""] += 1
        return report

    def write(self, traces: Path, rejects: Path) -> None:
        """Write what is accepted in the layout of gaotang/RM-R1-Distill-SFT, and what is not.

        Both files are made anew, in the order of the input, whole or not at all. Open examples are
        in neither.
        """
        with atomic_file(traces) as accepted, atomic_file(rejects) as rejected:
            for outcome in self.outcomes():
                if outcome.status == "accepted" and outcome.reply is not None:
                    accepted.write(_line(self._trace_record(outcome.example, outcome)))
                elif outcome.status != "open":
                    rejected.write(
                        _line(
                            {
                                "id": outcome.example.id,
                                "pass": outcome.number,
                                "status": outcome.status,
                                "reason": outcome.reason,
                                "text": None if outcome.reply is None else outcome.reply.text,
                            }
                        )
                    )

    def _each(self) -> Iterator[Example]:
        return (self.examples[index] for index in range(len(self.examples)))

    def _trace_record(self, example: Example, outcome: Outcome) -> dict[str, Any]:
        assert outcome.reply is not None
        return {
            "id": example.id,
            "source": example.source,
            "context_messages": example.messages(self._prompt),
            "winner": outcome.reply.text,
            "ground_truth": f"model_{_label(example).lower()}",
            "teacher": self.names[outcome.number],
            "pass": outcome.number,
        }

    def _open_request(self, example: Example, number: int) -> Request | None:
        request = self._first(example)
        if number == 2:
            reply = self.replies.get(request.key)
            if reply is None or self.problem(1, request, reply) is None:
                return None
            request = self._second(request, reply)
        return None if request.key in self.replies else request

    def _first_reason(self, example: Example) -> str:
        request = self._first(example)
        reply = self.replies.get(request.key)
        return "" if reply is None else self.problem(1, request, reply) or ""

    def _first(self, example: Example) -> Request:
        messages = example.messages(self._prompt)
        return Request(self._key(1, example, messages), example, messages)

    def _second(self, first: Request, wrong: Reply) -> Request:
        messages = second_messages(first.messages, _label(first.example), wrong.text)
        return Request(self._key(2, first.example, messages), first.example, messages)

    def _key(self, number: int, example: Example, messages: list[dict[str, str]]) -> str:
        """Names a request by all that it depends on, in the letters that batch APIs allow."""
        content = [self._teachers[number], example.id, example.label, messages]
        digest = hashlib.sha256(json.dumps(content).encode("utf-8")).hexdigest()
        return f"pass{number}-{digest[:48]}"


def check_examples(examples: Examples, where: str) -> None:
    """Refuse, before anybody is asked, what cannot be distilled. Raises UserError."""
    if len(examples) == 0:
        raise UserError(f"{where}: holds no pairs; give at least one")
    seen: set[bytes] = set()
    unlabelled, first = 0, ""
    for index in range(len(examples)):
        example = examples[index]
        if example.label is None:
            unlabelled += 1
            first = first or example.id
        digest = hashlib.blake2b(example.id.encode("utf-8"), digest_size=16).digest()
        if digest in seen:
            raise UserError(f"{where}: has the id {example.id!r} twice; make ids unique")
        seen.add(digest)
    if unlabelled:
        raise UserError(
            f"{where}: {unlabelled} of {len(examples)} pairs have no label (the first is "
            f"{first!r}); distillation needs to know the correct verdict, so label or drop them"
        )


def _label(example: Example) -> Literal["A", "B"]:
    assert example.label is not None  # check_examples
    return example.label


def _line(record: Mapping[str, object]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
