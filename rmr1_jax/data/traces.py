"""Traces to learn from, wherever they lie, as a stream of examples.

The layout is that of the released set (`gaotang/RM-R1-Distill-SFT`, spec §1.3): `context_messages`,
the judge's prompt as it was rendered; `winner`, which there is the trace; perhaps `ground_truth`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rmr1_jax.data.example import Example
from rmr1_jax.data.preference_file import RejectsFile
from rmr1_jax.data.preference_store import ExampleStore, is_complete
from rmr1_jax.data.row_files import decode_row, row_text
from rmr1_jax.data.sources import open_source
from rmr1_jax.errors import UserError
from rmr1_jax.io.atomic_write import atomic_write
from rmr1_jax.judging import JudgePrompt, RecordError, chain_of_rubrics, reasoning

TRACES = "traces.jsonl"  # what --stage=synthesize writes


@dataclass(frozen=True)
class Traces:
    """Examples with traces.

    Args:
      read: gives them all, in order, each time it is called.
      fingerprint: changes with the files that hold them.
      prompt: what the first of them answers.
      rejects: where records go that are no traces.
    """

    read: Callable[[], Iterator[Example]]
    fingerprint: str
    prompt: JudgePrompt
    rejects: Path

    @property
    def rejected(self) -> int:
        """Records that are no traces, once all were read."""
        if not self.rejects.exists():
            return 0
        with self.rejects.open("rb") as lines:
            return sum(1 for _ in lines)


def open_traces(path: str, record: Path) -> Traces:
    """The traces of a directory made by `--stage=synthesize`, of files, of a store, or on the hub.

    `record` is a JSON file of the run. It says which files the run began with, and the prompt that
    they answer; a run is resumed with the same files only. Records that are no traces go to
    `RECORD.rejects.jsonl`. Raises UserError.
    """
    rejects = RejectsFile(record.with_suffix(".rejects.jsonl"))
    if is_complete(path):
        store = ExampleStore(path)
        split = store.split("train")
        if not len(split):
            raise UserError(f"{path} holds no traces in its split train; name another directory")

        def examples() -> Iterator[Example]:
            return (split[index] for index in range(len(split)))

        return Traces(examples, store.fingerprint, _prompt_of(split[0]), rejects.path)
    inside = Path(path) / TRACES
    name = str(inside) if inside.is_file() else path
    files = [_described(file) for file in _local_files(name)]
    if record.exists():
        kept = json.loads(record.read_text(encoding="utf-8"))
        if kept["files"] != files:
            raise UserError(
                f"{path} has changed since this run began ({record} says what it was); "
                "give the same traces, or name another --workdir"
            )
        prompt = JudgePrompt(**kept["prompt"])
    else:
        first = next(_examples(name, rejects), None)
        if first is None:
            raise UserError(f"{path} holds no traces: see {rejects.path}")
        prompt = _prompt_of(first)
        atomic_write(record, json.dumps({"files": files, "prompt": asdict(prompt)}, indent=2))
    made_from = json.dumps(files or path)
    fingerprint = hashlib.sha256(made_from.encode()).hexdigest()
    return Traces(partial(_examples, name, rejects), fingerprint, prompt, rejects.path)


def _prompt_of(example: Example) -> JudgePrompt:
    """The prompt that a trace answers, as it is rendered in it; a pair has none."""
    if not example.prompt:
        return chain_of_rubrics()
    system = next((message.content for message in example.prompt if message.role == "system"), None)
    return reasoning() if system is None else JudgePrompt("chain_of_rubrics", system)


def _examples(name: str, rejects: RejectsFile) -> Iterator[Example]:
    source = open_source(name)
    seen: set[bytes] = set()
    for row in source.rows():
        try:
            example = source.example(decode_row(row.raw), row.default_id)
            if example.trace is None:
                raise RecordError(
                    "winner", "holds a verdict and no trace; distil it with --stage=synthesize"
                )
            digest = hashlib.blake2b(example.id.encode(), digest_size=16).digest()
            if digest in seen:
                raise RecordError("id", f"{example.id!r} is given twice; make ids unique")
            seen.add(digest)
        except RecordError as error:
            rejects(row.number, f"{row.place}, {error}", row_text(row.raw))
            continue
        yield example


def _local_files(name: str) -> list[Path]:
    """The files on this machine that would show a change; none for what lies elsewhere."""
    path = Path(name)
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.is_file() else []


def _described(file: Path) -> dict[str, object]:
    with file.open("rb") as content:
        return {"file": file.name, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}
