"""Traces to learn from, wherever they lie, as examples in random access.

The layout is that of the released set (`gaotang/RM-R1-Distill-SFT`, spec §1.3): `context_messages`,
the judge's prompt as it was rendered; `winner`, which there is the trace; perhaps `ground_truth`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rmr1_jax.data.example import Example
from rmr1_jax.data.preference_file import Rejects, RejectsFile
from rmr1_jax.data.preference_store import ExampleStore, StoreWriter, is_complete
from rmr1_jax.data.row_files import decode_row, row_text
from rmr1_jax.data.sources import open_source
from rmr1_jax.data.token_cache import Examples
from rmr1_jax.errors import UserError
from rmr1_jax.judging import JudgePrompt, RecordError, chain_of_rubrics, load_prompt, reasoning

TRACES = "traces.jsonl"  # what --stage=synthesize writes


@dataclass(frozen=True)
class Traces:
    """Examples with traces; `fingerprint` changes with them; `rejected` records were none."""

    examples: Examples
    fingerprint: str
    rejected: int = 0


def open_traces(path: str, spool: Path) -> Traces:
    """The traces of a directory made by `--stage=synthesize`, of files, of a store, or on the hub.

    Records are copied once into a store, `spool`, which gives random access without memory; those
    that are no traces go to `SPOOL.rejects.jsonl`. Raises UserError, also where the files are not
    those that `spool` was made from.
    """
    if is_complete(path):
        store = ExampleStore(path)
        return Traces(store.split("train"), store.fingerprint)
    inside = Path(path) / TRACES
    name = str(inside) if inside.is_file() else path
    made_from = {"files": [_described(file) for file in _local_files(name)]}
    rejects = RejectsFile(spool.with_name(f"{spool.name}.rejects.jsonl"))
    if is_complete(spool):
        store = ExampleStore(spool)
        if store.about["files"] != made_from["files"]:
            raise UserError(
                f"{path} has changed since this run began (a copy of what it was is in {spool}); "
                "give the same traces, or name another --workdir"
            )
    else:
        with StoreWriter(spool, "traces") as writer:
            split = writer.split("train")
            for number, example in enumerate(_examples(name, rejects)):
                if number >= split.done:
                    split.append(example)
            if not split.count:
                raise UserError(f"{path} holds no traces: see {rejects.path}")
            writer.finish(made_from | {"rejected": rejects.count})
        store = ExampleStore(spool)
    return Traces(store.split("train"), store.fingerprint, int(store.about["rejected"]))


def prompt_of_traces(traces: Traces, given: str) -> JudgePrompt:
    """The prompt that they answer: the given one, else that which the first one has rendered."""
    if given:
        return load_prompt(given)
    messages = traces.examples[0].prompt
    if not messages:
        return chain_of_rubrics()
    system = next((message.content for message in messages if message.role == "system"), None)
    return reasoning() if system is None else JudgePrompt("chain_of_rubrics", system)


def _examples(name: str, rejects: Rejects) -> Iterator[Example]:
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
