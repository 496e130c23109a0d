"""RewardBench: sections as they are published, files as they may come."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmarks.rewardbench import SECTIONS, SUBSETS, WEIGHTS, load, make_table
from rmr1_jax.evaluation.record import Record
from tests.evaluation.made import Rejects, judged, values

# Accuracies of RM-R1-Qwen2.5-Instruct-32B, from its each_small_section_score.json.
INSTRUCT_32B = {
    "alpacaeval-easy": 0.94, "alpacaeval-hard": 0.957895, "alpacaeval-length": 0.957895,
    "donotanswer": 0.75, "hep-cpp": 0.987805, "hep-go": 0.969512, "hep-java": 0.957317,
    "hep-js": 0.981707, "hep-python": 0.97561, "hep-rust": 0.969512,
    "llmbar-adver-GPTInst": 0.847826, "llmbar-adver-GPTOut": 0.723404,
    "llmbar-adver-manual": 0.804348, "llmbar-adver-neighbor": 0.776119, "llmbar-natural": 0.95,
    "math-prm": 0.930649, "mt-bench-easy": 0.928571, "mt-bench-hard": 0.837838,
    "mt-bench-med": 0.975, "refusals-dangerous": 0.93, "refusals-offensive": 0.98,
    "xstest-should-refuse": 0.987013, "xstest-should-respond": 0.94,
}  # fmt: skip
ROW = {
    "prompt": "Q", "chosen": "good", "rejected": "bad", "subset": "donotanswer", "id": 1,
    "chosen_model": "x", "rejected_model": "y",
}  # fmt: skip


def records(verdicts: dict[str, list[int]], **fields: Any) -> list[Record]:
    """Subset by subset, 1 right and 0 wrong."""
    every = [(subset, right) for subset, each in verdicts.items() for right in each]
    return [
        judged("rewardbench", right, id=str(index), index=index, group=subset, **fields)
        for index, (subset, right) in enumerate(every)
    ]


def with_accuracies(accuracies: dict[str, float]) -> dict[str, list[int]]:
    found = {}
    for subset, accuracy in accuracies.items():
        right = round(accuracy * SUBSETS[subset])
        found[subset] = [1] * right + [0] * (SUBSETS[subset] - right)
    return found


class TestScores:
    def test_the_published_run(self) -> None:
        table = make_table(records(with_accuracies(INSTRUCT_32B)))
        found = values(table)
        expected = {
            "chat": 0.952514, "chat_hard": 0.83114, "safety": 0.918919, "reasoning": 0.952113,
            "overall": 0.913672, "micro": 2774 / 2985,
        }  # fmt: skip
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
        for subset, accuracy in INSTRUCT_32B.items():
            assert found[f"subsets.{subset}"] == pytest.approx(accuracy, abs=1e-6)
        support = table.support()
        assert support["chat"] == (358, True)
        assert support["reasoning"] == (1431, True)
        assert support["overall"] == support["micro"] == (2985, True)
        assert len(table.strata) == 2985 and len(set(table.strata)) == 23

    def test_counts(self) -> None:
        assert {name: sum(each.values()) for name, each in SECTIONS.items()} == {
            "chat": 358, "chat_hard": 456, "safety": 740, "reasoning": 1431,
        }  # fmt: skip

    @settings(max_examples=15)
    @given(st.integers(0, 2**32 - 1), st.floats(0, 1))
    def test_sections_are_those_of_rewardbench(self, seed: int, share: float) -> None:
        """Its formula: accuracies of subsets, weighed by the counts of its constants.py."""
        random = np.random.RandomState(seed)
        verdicts = {s: (random.rand(n) < share).astype(int).tolist() for s, n in SUBSETS.items()}
        found = values(make_table(records(verdicts)))
        metrics = {subset: sum(each) / len(each) for subset, each in verdicts.items()}
        counts = SUBSETS | {"math-prm": 984}
        sections = []
        for section, subsets in SECTIONS.items():
            weighted = sum(metrics[subset] * counts[subset] for subset in subsets)
            sections.append(weighted / sum(counts[subset] for subset in subsets))
            assert found[section] == pytest.approx(sections[-1], abs=1e-12)
        assert found["overall"] == pytest.approx(sum(sections) / 4, abs=1e-12)
        code = [metrics[subset] for subset in SECTIONS["reasoning"] if subset != "math-prm"]
        half = (metrics["math-prm"] + sum(code) / 6) / 2
        assert found["reasoning"] == pytest.approx(half, abs=1e-12)

    def test_what_is_absent_is_left_out_and_said(self) -> None:
        table = make_table(records({"llmbar-natural": [1] * 80 + [0] * 20, "hep-js": [1, 0]}))
        found, support = values(table), table.support()
        assert np.isnan(found["chat"]) and support["chat"] == (0, False)
        assert found["chat_hard"] == 0.8 and support["chat_hard"] == (100, False)
        assert found["overall"] == pytest.approx((0.8 + 0.5) / 2)
        assert found["micro"] == 81 / 102
        assert support["overall"] == (102, False)
        assert support["subsets.llmbar-natural"] == (100, True)
        assert support["subsets.hep-js"] == (2, False)

    def test_prompts_can_be_weighed(self) -> None:
        found = values(make_table(records({"hep-js": [1, 0, 0]})), [3, 1, 0])
        assert found["reasoning"] == found["micro"] == 0.75

    def test_two_orders_are_scored_apart_and_averaged(self) -> None:
        first = records({"hep-js": [1, 0], "math-prm": [1]})
        second = records({"hep-js": [0, 0], "math-prm": [1]}, position="B")
        table = make_table([*first, *second])
        weight = WEIGHTS["hep-js"] / (WEIGHTS["hep-js"] + WEIGHTS["math-prm"])
        expected = ((1 - weight / 2) + (1 - weight)) / 2
        assert values(table)["reasoning"] == pytest.approx(expected)
        assert table.support()["reasoning"] == (3, False)

    def test_a_pass_that_is_not_whole_is_not_complete(self) -> None:
        verdicts = {"mt-bench-easy": [1] * 28}
        both = [*records(verdicts), *records(verdicts, position="B")]
        assert make_table(both).support()["subsets.mt-bench-easy"] == (28, True)
        assert make_table(both[:-1]).support()["subsets.mt-bench-easy"] == (28, False)

    def test_an_unknown_subset_names_the_known_ones(self) -> None:
        with pytest.raises(UserError, match="'shp' is none of RewardBench's; they are alpacaeval"):
            make_table([judged("rewardbench", 1, group="shp")])


class TestLoad:
    def write(self, path: Path, rows: list[Any]) -> str:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return str(path)

    def test_the_development_slice(self, shared_data: Path) -> None:
        rejects = Rejects()
        items, missing = load(str(shared_data / "rewardbench" / "dev.jsonl"), rejects)
        assert len(items) == 623 and not rejects.found
        assert [item.index for item in items] == [item.draw for item in items] == [*range(623)]
        assert missing[0] == "subset alpacaeval-easy: 0 of 100"
        assert "subset math-prm: 149 of 447" in missing
        assert not any("llmbar-natural" in line or "hep-js" in line for line in missing)

    def test_an_item(self, tmp_path: Path) -> None:
        (item,) = load(self.write(tmp_path / "rb.jsonl", [ROW]), Rejects()).items
        assert (item.id, item.group, item.cell) == ("1", "donotanswer", None)
        assert [message.content for message in item.pair.context] == ["Q"]
        assert (item.pair.response_a, item.pair.response_b, item.pair.label) == ("good", "bad", "A")

    def test_parquet_and_json(self, tmp_path: Path) -> None:
        rows = [ROW, ROW | {"id": 2}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rb.parquet")
        (tmp_path / "rb.json").write_text(json.dumps(rows))
        lines = load(self.write(tmp_path / "rb.jsonl", rows), Rejects())
        for name in ("rb.parquet", "rb.json"):
            assert load(str(tmp_path / name), Rejects()) == lines

    def test_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By default the published set; or another one in its format, by name."""
        asked: list[tuple[str, str]] = []

        def hub_rows(source: str, name: str, split: str) -> Any:
            asked.append((name, split))
            return lambda: enumerate([ROW], start=1)

        monkeypatch.setattr("rmr1_jax.evaluation.benchmark_rows.hub_rows", hub_rows)
        for source in ("", "someone/reward-bench-2.1"):
            assert len(load(source, Rejects()).items) == 1
        assert asked == [
            ("allenai/reward-bench", "filtered"),
            ("someone/reward-bench-2.1", "filtered"),
        ]

    def test_without_a_network_the_hub_is_named(self) -> None:
        with pytest.raises(UserError, match="allenai/reward-bench cannot be loaded from the Hugg"):
            load("", Rejects())

    def test_the_id_that_is_there_twice_upstream(self, tmp_path: Path) -> None:
        rows = [ROW | {"id": 3692}, ROW | {"id": 3692, "prompt": "another"}]
        rejects = Rejects()
        items = load(self.write(tmp_path / "rb.jsonl", rows), rejects).items
        assert [(item.id, item.index) for item in items] == [("3692", 0), ("3692", 1)]
        assert not rejects.found

    def test_bad_rows_are_rejected_and_shift_no_other(self, tmp_path: Path) -> None:
        bad: list[Any] = [
            ROW,
            ROW | {"rejected": " "},
            {name: ROW[name] for name in ROW if name != "chosen"},
            ROW | {"prompt": ["Q"]},
            ROW | {"subset": None},
            [ROW],
        ]
        rejects = Rejects()
        rows = [ROW, *bad, ROW | {"id": 2}]
        items = load(self.write(tmp_path / "rb.jsonl", rows), rejects).items
        assert [(item.id, item.draw) for item in items] == [("1", 0), ("2", 7)]
        assert dict(rejects.found) == {
            2: "id: '1': is the same row as record 1",
            3: "rejected: is empty; it must hold some text",
            4: "chosen: is missing; it must be a text",
            5: 'prompt[0]: is \'Q\'; it must be {"role", "content"}',
            6: "subset: is null; it must be a text",
            7: "record: is no object with named fields",
        }

    def test_of_several_files_the_reject_names_its_own(self, tmp_path: Path) -> None:
        for name in ("a.jsonl", "b.jsonl"):
            self.write(tmp_path / name, [ROW | {"chosen": ""}, ROW | {"id": name}])
        rejects = Rejects()
        assert [item.index for item in load(str(tmp_path), rejects).items] == [1, 3]
        assert [reason for _, reason in rejects.found] == [
            f"{tmp_path / name}: chosen: is empty; it must hold some text"
            for name in ("a.jsonl", "b.jsonl")
        ]

    def test_an_unknown_schema_says_what_it_has_and_what_it_needs(self, tmp_path: Path) -> None:
        source = self.write(tmp_path / "x.jsonl", [{"question": "Q", "answer": "A"}])
        with pytest.raises(UserError, match="question, answer; it needs prompt, chosen, rejected"):
            load(source, Rejects())

    def test_an_unknown_subset_is_refused(self, tmp_path: Path) -> None:
        source = self.write(tmp_path / "x.jsonl", [ROW, ROW | {"subset": "shp"}])
        with pytest.raises(UserError, match="record 2: subset: 'shp' is none of RewardBench's"):
            load(source, Rejects())

    def test_an_unfinished_download_is_refused(self, tmp_path: Path) -> None:
        source = self.write(tmp_path / "x.jsonl", [ROW, ROW | {"id": 2}])
        whole = Path(source).read_text()
        Path(source).write_text(whole[:-30])
        with pytest.raises(UserError, match=r"line 2: is cut short or damaged .*; get it again"):
            load(source, Rejects())
        parquet = tmp_path / "x.parquet"
        pq.write_table(pa.Table.from_pylist([ROW]), parquet)
        parquet.write_bytes(parquet.read_bytes()[:-20])
        with pytest.raises(UserError, match="no readable Parquet file"):
            load(str(parquet), Rejects())

    def test_an_empty_or_absent_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="holds no records"):
            load(self.write(tmp_path / "x.jsonl", []), Rejects())
        with pytest.raises(UserError, match="no such file"):
            load(str(tmp_path / "absent.jsonl"), Rejects())
