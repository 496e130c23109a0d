"""Traces of a run to read: `samples.jsonl` has them all, `samples.html` shows the latest groups."""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from rmr1_jax.io.atomic_write import atomic_write
from rmr1_jax.io.page import render_page
from rmr1_jax.judging import Side, answer
from rmr1_jax.judging.markup import highlighted
from rmr1_jax.training.metrics import keep_until

SAMPLES = "samples.jsonl"
PAGE = "samples.html"
GROUPS_SHOWN = 40

Record = Mapping[str, Any]


@dataclass(frozen=True)
class TraceRecord:
    """One trace of a step. `prompt` and `trace` are texts with their special tokens kept."""

    id: str
    label: Side
    sample: int
    prompt: str
    trace: str
    reward: float
    advantage: float
    tokens: int
    truncated: bool


class SampleLog:
    """Appends traces, one line each, and draws the page anew. One process of a run may have one.

    Args:
      workdir: the run's.
      after: the step that the run goes on after; traces of later steps are an interrupted run's,
        and will be made again.
    """

    def __init__(self, workdir: Path, *, after: int) -> None:
        self.path, self.page = workdir / SAMPLES, workdir / PAGE
        self._title = workdir.name
        # Read once: the file grows for as long as the run, the page does not.
        self._groups: deque[list[Record]] = deque(maxlen=GROUPS_SHOWN)
        keep_until(self.path, after)
        if self.path.exists():
            with self.path.open("rb") as lines:
                self._groups.extend(in_groups(json.loads(line) for line in lines))
        if self.page.exists():
            self._draw()

    def write(self, step: int, records: Sequence[TraceRecord]) -> None:
        """Traces of a step; those of one group stand together, in the order of their samples."""
        lines = [line_of(step, record) for record in records]
        with self.path.open("ab") as file:
            file.write(
                "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
            )
        self._groups.extend(in_groups(lines))
        self._draw()

    def _draw(self) -> None:
        steps = [
            (step, [card(group) for group in groups])
            for step, groups in groupby(self._groups, lambda group: group[0]["step"])
        ]
        text = render_page(
            "rmr1_jax.rl",
            "samples.html.jinja",
            "samples.js",
            title=self._title,
            steps=steps[::-1],
            file=SAMPLES,
        )
        atomic_write(self.page, text)


def line_of(step: int, record: TraceRecord) -> dict[str, Any]:
    """What is written of a trace: its verdict, or why it has none, is the reward's."""
    found = answer(record.trace, "reward")
    return {"step": step, **asdict(record), "verdict": found.verdict, "problem": found.problem}


def in_groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Traces of one prompt and step. A prompt that came twice in a step has two groups."""
    group: list[Record] = []
    for record in records:
        if group and (
            (record["step"], record["id"]) != (group[-1]["step"], group[-1]["id"])
            or record["sample"] <= group[-1]["sample"]
        ):
            yield group
            group = []
        group.append(record)
    if group:
        yield group


def card(group: Sequence[Record]) -> dict[str, Any]:
    """What the page shows of a group."""
    rewards = [record["reward"] for record in group]
    first = group[0]
    return {
        "id": first["id"],
        "label": first["label"],
        "prompt": highlighted(first["prompt"], parts=False),
        "reward": fmean(rewards),
        "no_signal": len(set(rewards)) == 1,
        "traces": [
            {**record, "outcome": outcome(record), "html": highlighted(record["trace"])}
            for record in group
        ],
    }


def outcome(record: Record) -> str:
    if record["verdict"] is None:
        return "none"
    return "right" if record["verdict"] == record["label"] else "wrong"
