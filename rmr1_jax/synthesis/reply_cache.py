"""Every reply that a teacher gave, kept for good: what a run that goes on reads first."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rmr1_jax.errors import UserError
from rmr1_jax.synthesis.teacher_client import Answer
from rmr1_jax.synthesis.teachers import Reply, Request


class Log(Protocol):
    """A file of JSON lines that is appended to, each line on the disk before the next."""

    path: Path

    def append(self, record: Mapping[str, object]) -> None: ...


@dataclass
class Spend:
    """What asking has cost so far.

    `requests` counts every attempt. `lost_tokens` is the most that replies can have cost which did
    not arrive; the caps count it, too.
    """

    requests: int = 0
    replies: int = 0
    retries: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    lost_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens + self.lost_tokens


class ReplyCache:
    """The log of all replies, by request key. Memory holds a position a reply, not its text.

    A failed request leaves a record too, since its attempts count; it is asked again.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._positions: dict[str, int] = {}
        self._failures: dict[str, str] = {}
        self._failed_in_batch: Counter[str] = Counter()
        self._seen_in_batch: set[tuple[str, str]] = set()
        self.spend: dict[int, Spend] = {1: Spend(), 2: Spend()}
        self._end = 0
        with log.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                self._index(self._parse(line, number), len(line))

    def __contains__(self, key: str) -> bool:
        return key in self._positions

    def get(self, key: str) -> Reply | None:
        position = self._positions.get(key)
        if position is None:
            return None
        with self._log.path.open("rb") as file:
            file.seek(position)
            record = json.loads(file.readline())
        return Reply(
            record["text"],
            record["finish_reason"],
            record["prompt_tokens"],
            record["completion_tokens"],
        )

    def failure(self, key: str) -> str | None:
        """Why the last try of a request that has no reply failed."""
        return self._failures.get(key)

    def failures_in_batches(self, key: str) -> int:
        """How many result files of batches said that this request failed."""
        return self._failed_in_batch[key]

    def add(self, request: Request, number: int, teacher: str, answer: Answer) -> None:
        """Keep an answer of pass `number`; it is on the disk when this returns."""
        self._append(request.key, request.example.id, number, teacher, answer, batch=None)

    def add_from_batch(
        self, request: Request, number: int, teacher: str, outcome: Reply | str, file: str
    ) -> bool:
        """Keep a line of a result file. Returns False where it is known already."""
        if request.key in self._positions or (request.key, file) in self._seen_in_batch:
            return False
        if isinstance(outcome, str):
            answer = Answer(None, outcome, attempts=1, lost_tokens=0)
        else:
            answer = Answer(outcome, None, attempts=1, lost_tokens=0)
        self._append(request.key, request.example.id, number, teacher, answer, batch=file)
        return True

    def _append(
        self, key: str, id: str, number: int, teacher: str, answer: Answer, batch: str | None
    ) -> None:
        record: dict[str, Any] = {
            "key": key,
            "id": id,
            "pass": number,
            "teacher": teacher,
            "attempts": answer.attempts,
            "lost_tokens": answer.lost_tokens,
        }
        if batch is not None:
            record["batch"] = batch
        if answer.reply is None:
            record["failure"] = answer.failure
        else:
            record |= vars(answer.reply)
        self._log.append(record)
        self._index(record, self._log.path.stat().st_size - self._end)

    def _index(self, record: dict[str, Any], size: int) -> None:
        key, spend = record["key"], self.spend[record["pass"]]
        spend.requests += record["attempts"]
        spend.retries += max(record["attempts"] - 1, 0)
        spend.lost_tokens += record["lost_tokens"]
        if "failure" in record:
            spend.failures += 1
            self._failures[key] = record["failure"]
        else:
            spend.replies += 1
            spend.prompt_tokens += record["prompt_tokens"]
            spend.completion_tokens += record["completion_tokens"]
            self._positions[key] = self._end
        if "batch" in record:
            self._seen_in_batch.add((key, record["batch"]))
            self._failed_in_batch[key] += "failure" in record
        self._end += size

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
            for name, kind in (
                ("key", str),
                ("pass", int),
                ("attempts", int),
                ("lost_tokens", int),
            ):
                if not isinstance(record[name], kind):
                    raise TypeError(name)
            if "failure" not in record:
                _ = record["text"], record["prompt_tokens"] + record["completion_tokens"]
                _ = record["finish_reason"]
            _ = self.spend[record["pass"]]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self._log.path}, line {number}: is no record of this stage; choose another "
                "--output, or delete this line to have it asked again"
            ) from error
        return record
