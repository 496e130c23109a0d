"""Traces to learn from, wherever they lie, as examples in random access.

The layout is that of the released set (`gaotang/RM-R1-Distill-SFT`, spec §1.3): `context_messages`,
the judge's prompt as it was rendered; `winner`, which there is the trace; perhaps `ground_truth`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rmr1_jax.data.example import Example
from rmr1_jax.data.sources import RejectsFile, record_text, records
from rmr1_jax.data.store import ExampleStore, StoreWriter, is_complete
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
    """The traces of a directory made by `--stage=synthesize`, a file, a store, or a hub's set.

    Records are copied once into a store, `spool`, which gives random access without memory; those
    that are no traces go to `SPOOL.rejects.jsonl`. Raises UserError.
    """
    place = Path(path)
    if is_complete(place):
        store = ExampleStore(place)
        return Traces(store.split("train"), store.fingerprint)
    if place.is_dir():
        place = place / TRACES
        if not place.is_file():
            raise UserError(
                f"{path} holds neither {TRACES} nor a prepared data set; name a directory made by "
                "--stage=synthesize, or a file of traces"
            )
