"""The directory of an evaluation: items, records, scores, and what they were made with."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.record import Item, Key, Record, Rule, read_records, record_from_json
from rmr1_jax.io.atomic_write import atomic_write
from rmr1_jax.io.record_log import RecordLog
from rmr1_jax.io.run_directory import resume_or_refuse, write_settings

RUN, SCORES = "run.json", "scores.json"


class Results:
    """`RUN` says how the records of a directory were made; without it they are somebody else's.

    While a benchmark is judged, its records stand in `records/NAME.partial.jsonl` as they are
    finished; then in `records/NAME.jsonl`, in the order of the data set.
    """

    def __init__(self, output: str | Path) -> None:
        self.output = Path(output)

    def records_file(self, benchmark: str) -> Path:
        return self.output / "records" / f"{benchmark}.jsonl"

    def items_file(self, benchmark: str) -> Path:
        return self.output / "items" / f"{benchmark}.jsonl"

    def rejects_file(self, benchmark: str) -> Path:
        return self.output / "rejects" / f"{benchmark}.jsonl"

    def partial_file(self, benchmark: str) -> Path:
        return self.output / "records" / f"{benchmark}.partial.jsonl"

    def begin(self, settings: Mapping[str, object], sources: Mapping[str, object]) -> None:
        """Enter the directory with these settings, and these benchmarks.

        A benchmark may join later; one that is there must be the same, and so must the settings.

        Args:
          settings: what all records were made with.
          sources: benchmark -> what its items are, for example a fingerprint.

        Raises UserError that shows the differences.
        """
        file = self.output / RUN
        strangers = self._strangers(self.run_info() or {})
        if strangers:
            raise UserError(
                f"{strangers[0]}: records are there, but no {RUN} that says how they were "
                "made; score them with --score_only, or choose another --output"
            )
        made = {"settings": settings, "benchmarks": sources}
        info = resume_or_refuse(file, made, may_join=["benchmarks"])
        info = info or {"settings": dict(settings), "benchmarks": {}}
        info["benchmarks"] = {**info.get("benchmarks", {}), **sources}
        write_settings(file, info)

    def _strangers(self, info: Mapping[str, Any]) -> list[Path]:
        """Files that hold records, finished or not, of benchmarks that no run here began."""
        files = sorted((self.output / "records").glob("*.jsonl"))
        return [
            path
            for path in files
            if path.stat().st_size
            and path.name.removesuffix(".jsonl").removesuffix(".partial")
            not in info.get("benchmarks", {})
        ]

    def check_finished(self, benchmark: str, keys: Sequence[Key]) -> None:
        """Raises UserError where the finished records are not about just these judgements."""
        path = self.records_file(benchmark)
        found = {record.key for record in read_records(path, benchmark)}
        absent, more = len(set(keys) - found), len(found - set(keys))
        if absent or more:
            raise UserError(
                f"{path}: lacks {absent} of this run's {len(keys)} judgements, and has {more} that "
                "are none of them; put back the file of this run, or delete it to judge again"
            )

    def note(self, **facts: object) -> None:
        """Add what became known later, such as the prompt, to `RUN`. Raises UserError where it is
        not what it was."""
        file = self.output / RUN
        info = resume_or_refuse(file, facts, may_join=list(facts)) or {}
        write_settings(file, {**info, **facts})

    def run_info(self) -> dict[str, Any] | None:
        """None where there is none. Raises UserError where it is damaged."""
        return resume_or_refuse(self.output / RUN, {})

    def record_files(self) -> dict[str, Path]:
        """The finished records by benchmark."""
        files = sorted((self.output / "records").glob("*.jsonl"))
        return {path.stem: path for path in files if not path.stem.endswith(".partial")}

    def read(self, rule: Rule = "published") -> dict[str, list[Record]]:
        """All finished records. Raises UserError where there are none, or a line is none."""
        files = self.record_files()
        if not files:
            raise UserError(
                f"{self.output / 'records'}: holds no records (BENCHMARK.jsonl); "
                "judge first, or put them there"
            )
        return {name: read_records(path, name, rule) for name, path in files.items()}

    def write_items(self, benchmark: str, items: Iterable[Item]) -> None:
        lines = (json.dumps(item_to_json(item), ensure_ascii=False) + "\n" for item in items)
        atomic_write(self.items_file(benchmark), "".join(lines))

    def write_records(self, benchmark: str, records: Iterable[Record]) -> None:
        lines = (json.dumps(r.to_json(), ensure_ascii=False) + "\n" for r in records)
        atomic_write(self.records_file(benchmark), "".join(lines))

    def finish(self, benchmark: str, keys: Sequence[Key], rule: Rule = "published") -> None:
        """Put the records of the log in the order of `keys`, which must all be there."""
        with self.log(benchmark) as log:
            records = _by_key(log, rule)
        self.write_records(benchmark, [records[key] for key in keys])
        self.partial_file(benchmark).unlink()

    def log(self, benchmark: str) -> RecordLog:
        """The records of a benchmark that is being judged."""
        return RecordLog(self.partial_file(benchmark), info=self.output / RUN)

    def judged(self, log: RecordLog, rule: Rule = "published") -> set[Key]:
        """What is in the log already."""
        return set(_by_key(log, rule))

    def write_scores(self, scores: Mapping[str, Any]) -> Path:
        text = json.dumps(scores, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return atomic_write(self.output / SCORES, text)


def item_to_json(item: Item) -> dict[str, Any]:
    """A line of an items file: what the judge was shown, so that a report can show it again."""
    pair = item.pair
    messages = [{"role": message.role, "content": message.content} for message in pair.context]
    line: dict[str, Any] = {
        "index": item.index,
        "id": item.id,
        "group": item.group,
        "cell": None if item.cell is None else list(item.cell),
        "conversation": messages,
        "chosen": pair.response_a,
        "rejected": pair.response_b,
    }
    if pair.context_b is not None:
        line["conversation_rejected"] = [
            {"role": message.role, "content": message.content} for message in pair.context_b
        ]
    return line


def _by_key(log: RecordLog, rule: Rule) -> dict[Key, Record]:
    """Of a judgement that a kill left incomplete and that was made again, the last counts."""
    records = (record_from_json(line, rule) for line in log.records())
    return {record.key: record for record in records}
