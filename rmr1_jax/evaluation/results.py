"""The directory of an evaluation: items, records, scores, and what they were made with."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.item import Item
from rmr1_jax.evaluation.record import Key, Record, Rule, read_records, record_from_json
from rmr1_jax.io.atomic_write import atomic_write
from rmr1_jax.io.record_log import RecordLog

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
        earlier = self.run_info()
        strangers = self._strangers(earlier or {})
        if strangers:
            raise UserError(
                f"{strangers[0]}: records are there, but no {RUN} that says how they were "
                "made; score them with --score_only, or choose another --output"
            )
        if earlier is None:
            earlier = {"settings": dict(settings), "benchmarks": {}}
        changed = _differences(earlier.get("settings", {}), settings)
        known = earlier.get("benchmarks", {})
        same = {name: known[name] for name in sources if name in known}
        changed += _differences(same, {name: sources[name] for name in same})
        if changed:
            raise UserError(
                f"{file}: the records there were made with other settings: {'; '.join(changed)}. "
                "Take those back, or choose another --output"
            )
        earlier["benchmarks"] = {**known, **sources}
        self._write_run(earlier)

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
        info = self.run_info() or {}
        changed = _differences({k: info[k] for k in facts if k in info}, facts, only_known=True)
        if changed:
            raise UserError(
                f"{self.output / RUN}: the records there were made otherwise: "
                f"{'; '.join(changed)}. Choose another --output"
            )
        self._write_run({**info, **facts})

    def _write_run(self, info: Mapping[str, object]) -> None:
        text = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
        atomic_write(self.output / RUN, text)

    def run_info(self) -> dict[str, Any] | None:
        """None where there is none. Raises UserError where it is damaged."""
        file = self.output / RUN
        if not file.exists():
            return None
        try:
            info = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file}: cannot be read ({error}), so it is not known how the records were made; "
                "mend it, or choose another --output"
            ) from error
        return info if isinstance(info, dict) else {}

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


def _differences(
    earlier: Mapping[str, object], now: Mapping[str, object], *, only_known: bool = False
) -> list[str]:
    return [
        f"{name} was {earlier.get(name)!r} and is now {value!r}"
        for name, value in now.items()
        if (name in earlier or not only_known) and earlier.get(name) != value
    ]
