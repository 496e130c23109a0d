"""Requests as files for the vendors' batch APIs, and their result files back into the log.

In the output directory, for pass 1 with Anthropic:

    pass1.anthropic.jsonl, pass1.anthropic.2.jsonl, ...    requests; never changed once written
    pass1.anthropic.results*.jsonl                         results, put there by the user

Anthropic takes the lines of a file as the list `requests` of one batch; OpenAI takes the file. A
result file is what the vendor gives, whatever its order; OpenAI's error file is one, too.

A request that was written and has no result counts as under way and is not written again. To have
it written again, delete the request file.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rmr1_jax.data.preference_file import RejectsFile
from rmr1_jax.errors import UserError
from rmr1_jax.io.atomic_write import atomic_file
from rmr1_jax.synthesis.budget import Budget
from rmr1_jax.synthesis.reply_cache import ReplyCache
from rmr1_jax.synthesis.teachers import Format, Request
from rmr1_jax.synthesis.teachers.api_formats import BrokenReply
from rmr1_jax.synthesis.two_pass import Synthesis


@dataclass(frozen=True)
class BatchFiles:
    """The files of one pass."""

    directory: Path
    number: int
    format: Format

    @property
    def stem(self) -> str:
        return f"pass{self.number}.{self.format.kind}"

    def requests(self) -> list[Path]:
        """The request files, in the order in which they were written."""
        pattern = re.compile(re.escape(self.stem) + r"(?:\.(\d+))?\.jsonl")
        found = [
            (int(match[1] or 1), path)
            for path in self.directory.iterdir()
            if (match := pattern.fullmatch(path.name))
        ]
        return [path for _, path in sorted(found)]

    def results(self) -> list[Path]:
        return sorted(self.directory.glob(f"{self.stem}.results*.jsonl"))

    def next_request_file(self) -> Path:
        names = {path.name for path in self.requests()}
        number = 1
        while (name := f"{self.stem}{f'.{number}' if number > 1 else ''}.jsonl") in names:
            number += 1
        return self.directory / name


@dataclass
class Written:
    """What writing came to."""

    files: list[Path] = field(default_factory=list)
    requests: int = 0
    within_budget: bool = True


@dataclass
class Read:
    """What reading came to. `known` lines were read before; `broken` ones are in the rejects."""

    files: list[Path] = field(default_factory=list)
    replies: int = 0
    errors: int = 0
    known: int = 0
    broken: int = 0


def under_way(files: BatchFiles, replies: ReplyCache) -> set[str]:
    """Keys of requests that were written and have neither a reply nor an error since."""
    written: Counter[str] = Counter()
    for path in files.requests():
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    written[str(json.loads(line)["custom_id"])] += 1
                except (ValueError, TypeError, KeyError) as error:
                    raise UserError(
                        f"{path}, line {number}: is no request; if the file was never sent, "
                        "delete it, else mend it"
                    ) from error
    return {
        key
        for key, times in written.items()
        if key not in replies and times > replies.failures_in_batches(key)
    }


def write_requests(
    files: BatchFiles,
    synthesis: Synthesis,
    budget: Budget,
    *,
    most_requests: int | None = None,
    most_bytes: int | None = None,
) -> Written:
    """Write what a pass still has to ask into as many files as the vendor's limits need.

    What is under way counts against the budget with the most that it can cost.

    Args:
      most_requests, most_bytes: for one file; by default the vendor's limits.
    """
    most_requests = most_requests or files.format.batch_requests
    most_bytes = most_bytes or files.format.batch_bytes
    waiting = under_way(files, synthesis.replies)
    todo: list[Request] = []
    for request in synthesis.requests(files.number):
        if request.key in waiting:
            budget.spend(_most_tokens(request, files.format))
        else:
            todo.append(request)
    written = Written()
    for lines in _split(
        _affordable(todo, files.format, budget, written), most_requests, most_bytes
    ):
        path = files.next_request_file()
        with atomic_file(path) as file:
            file.writelines(lines)
        written.files.append(path)
        written.requests += len(lines)
    return written


def read_results(files: BatchFiles, synthesis: Synthesis, name: str, rejects: RejectsFile) -> Read:
    """Take all result files of a pass into the log; what is known already is passed over.

    Lines that are no result, or of no request of this output, go to `rejects`.
    """
    read = Read(files=files.results())
    keys = {key for path in read.files for _, key, _ in _entries(path) if key is not None}
    requests = {request.key: request for request in synthesis.find(files.number, keys)}
    for path in read.files:
        for number, key, line in _entries(path):
            request = requests.get(key or "")
            try:
                if request is None:
                    raise BrokenReply("custom_id is of no request of this output")
                outcome = files.format.read_batch_entry(json.loads(line))
            except BrokenReply as error:
                read.broken += 1
                rejects(number, f"{path.name}: {error}", line.decode("utf-8", "replace"))
                continue
            if not synthesis.replies.add_from_batch(
                request, files.number, name, outcome, path.name
            ):
                read.known += 1
            elif isinstance(outcome, str):
                read.errors += 1
            else:
                read.replies += 1
    return read


def _entries(path: Path) -> Iterator[tuple[int, str | None, bytes]]:
    """(line number, custom_id or None, line) of a result file."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                key = json.loads(line)["custom_id"]
            except (ValueError, TypeError, KeyError, RecursionError):
                key = None
            yield number, key if isinstance(key, str) else None, line


def _affordable(
    requests: list[Request], format: Format, budget: Budget, written: Written
) -> Iterator[bytes]:
    for request in requests:
        tokens = _most_tokens(request, format)
        if not budget.fits(tokens):
            written.within_budget = False
            return
        budget.spend(tokens)
        yield json.dumps(format.batch_entry(request), ensure_ascii=False).encode("utf-8") + b"\n"


def _split(lines: Iterator[bytes], most_lines: int, most_bytes: int) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for line in lines:
        if chunk and (len(chunk) == most_lines or size + len(line) > most_bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(line)
        size += len(line)
    if chunk:
        yield chunk


def _most_tokens(request: Request, format: Format) -> int:
    return request.most_prompt_tokens + format.max_new_tokens
