"""The logs that RM-R1 published, as records that can be scored."""

import json
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmarks import rewardbench, rm_bench, rmb
from rmr1_jax.evaluation.import_logs import import_logs
from rmr1_jax.evaluation.record import record_from_json
from tests.evaluation.made import Rejects

SHUFFLED = "Is_Chosen_Answer_Shuffled_toPositionB"


def said(verdict: str, shuffled: bool, result: float) -> dict[str, Any]:
    """The fields that every log of single pairs has."""
    return {
        "text_chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "good"}],
        "text_rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "no"}],
        "results": result,
        "answers": f"<answer>[[{verdict}]]</answer>",
        SHUFFLED: shuffled,
    }


def write(path: Path, rows: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


class TestPublishedLogs:
    def test_one_run(self, shared_data: Path) -> None:
        imported = import_logs(shared_data / "rmr1-logs" / "RM-R1-Qwen2.5-Instruct-32B")
        records = imported.records["rmb"]
        assert imported.records.keys() == imported.items.keys() == {"rmb"}
        assert not imported.problems
        assert [(record.id, record.cell, record.correct) for record in records] == [
            ("8777", None, 0), ("8778", None, 1), ("11114", None, 0), ("11115", None, 1),
            ("1291", ("1291", 0), 1), ("1291", ("1291", 1), 1),
            ("3405", ("3405", 0), 1), ("3405", ("3405", 1), 1),
        ]  # fmt: skip
        assert {record.chosen_position for record in records} == {"B"}
        assert all(record.trace and record.prompt for record in records)
        table = rmb.make_table(records)
        assert table.support()["overall"] == (6, False)

    def test_scores_alone_are_no_logs(self, shared_data: Path) -> None:
        imported = import_logs(shared_data / "rmr1-logs" / "RM-R1-DeepSeek-Distilled-Qwen-32B")
        assert imported.records == {}
        assert imported.problems[-1].endswith("holds no log of RM-R1 that can be imported")


class TestLayouts:
    def test_rewardbench(self, tmp_path: Path) -> None:
        rows = [
            said("A", False, 1) | {"subset": "hep-js", "id": 3692},
            said("A", True, 0) | {"subset": "hep-js", "id": 3692},
            said("A]] or [[B", True, 0) | {"subset": "donotanswer", "id": 7},
        ]
        write(tmp_path / "log_result" / "logs.json", rows)
        records, items, problems = import_logs(tmp_path)
        found = records["rewardbench"]
        assert [(r.id, r.index, r.group, r.correct) for r in found] == [
            ("3692", 0, "hep-js", 1), ("3692", 1, "hep-js", 0), ("7", 2, "donotanswer", 0),
        ]  # fmt: skip
        assert (found[2].verdict, found[2].problem) == (None, "both")
        assert items["rewardbench"][0].pair.response_a == "good"
        assert not problems
        assert record_from_json(found[1].to_json()) == found[1]

    def test_the_prompt_is_the_one_that_the_loader_sees(self, tmp_path: Path) -> None:
        row = {"prompt": "Q", "chosen": "good", "rejected": "no", "subset": "hep-js", "id": 1}
        (tmp_path / "rb.jsonl").write_text(json.dumps(row))
        (item,) = rewardbench.load(str(tmp_path / "rb.jsonl"), Rejects()).items
        write(tmp_path / "logs.json", [said("A", False, 1) | {"subset": "hep-js", "id": 1}])
        imported = import_logs(tmp_path / "logs.json")
        assert imported.items["rewardbench"] == [item]
        assert imported.records["rewardbench"][0].prompt == item.prompt

    def test_rm_bench(self, tmp_path: Path) -> None:
        """The three files of one run are the items that the loader makes of the data set."""
        data = [
            {
                "id": f"chat/{n}", "prompt": f"Q{n}", "domain": "chat",
                "chosen": [f"c{n}{k}" for k in range(3)],
                "rejected": [f"r{n}{k}" for k in range(3)],
            }
            for n in range(2)
        ]  # fmt: skip
        write(tmp_path / "total_dataset.json", data)
        items = rm_bench.load(str(tmp_path / "total_dataset.json"), Rejects()).items
        for number, rotation in enumerate(([0, 1, 2], [1, 2, 0], [2, 0, 1]), start=1):
            rows = [
                row
                | {
                    "rejected": [row["rejected"][k] for k in rotation],
                    "result": [1, 0, 1],
                    "output": ["[[A]]", "[[A]]", "[[B]]"],
                    SHUFFLED: [False, True, True],
                }
                for row in data
            ]
            write(tmp_path / "logs" / f"total_dataset_{number}_some-model.json", rows)
        imported = import_logs(tmp_path / "logs")
        assert imported.items["rm_bench"] == items
        assert not imported.problems
        scores = rm_bench.make_table(imported.records["rm_bench"]).details()["matrix"]
        assert scores["corrected"] == [[1, 1, 1], [0, 0, 0], [1, 1, 1]]

    def test_rm_bench_in_files_of_unlike_length(self, tmp_path: Path) -> None:
        for number, rows in ((1, 5), (2, 2), (3, 1)):
            data = [
                {
                    "id": f"chat/{n}", "prompt": f"Q{n}", "domain": "chat", "chosen": ["c"] * 3,
                    "rejected": ["r"] * 3, "output": ["[[A]]"] * 3, SHUFFLED: [False] * 3,
                }
                for n in range(rows)
            ]  # fmt: skip
            write(tmp_path / f"total_dataset_{number}_some-model.json", data)
        imported = import_logs(tmp_path)
        assert not imported.problems
        assert len(imported.records["rm_bench"]) == 3 * (5 + 2 + 1)

    def test_rmb(self, tmp_path: Path) -> None:
        best = "BoN_set/Helpfulness/Chat/Discussion"
        pair = {"pair_uid": "10", "category_path": "Pairwise_set/Harmlessness/S1"}
        queries = [{"bon_uid": uid, "category_path": best} for uid in ("9", "9", "10")]
        write(tmp_path / "b" / "logs.json", [said("B", True, 1) | pair])
        write(tmp_path / "a" / "raw_logs.json", [said("A", False, 1) | each for each in queries])
        (tmp_path / "a" / "group_by_same_id_logs.json").write_text('{"0": [{},]}')
        records, items, problems = import_logs(tmp_path)
        assert [(r.id, r.index, r.cell) for r in records["rmb"]] == [
            ("10", 0, None), ("9", 1, ("9", 0)), ("9", 2, ("9", 1)), ("10", 3, ("10", 0)),
        ]  # fmt: skip
        assert [item.draw for item in items["rmb"]] == [0, 0, 1, 2]
        assert not problems


class TestProblems:
    def test_the_rest_goes_on(self, tmp_path: Path) -> None:
        known = {"subset": "hep-js", "id": 1}
        (tmp_path / "broken.json").write_text('[{"a": 1},]')
        write(tmp_path / "config.json", {"model": "x"})
        write(tmp_path / "other.json", [{"a": 1}])
        write(tmp_path / "total_dataset_4_x.json", [{"output": [], "domain": "chat"}])
        write(
            tmp_path / "logs.json",
            [
                said("A", False, 1) | known,
                said("A", False, 1) | known | {SHUFFLED: "no"},
                said("A", False, 1) | known | {"answers": None},
                said("A", False, 1) | known | {"subset": "shp"},
                said("A", False, 1) | known | {"text_chosen": "Q"},
                "no record",
            ],
        )
        records, _, problems = import_logs(tmp_path)
        assert len(records["rewardbench"]) == 1
        assert len(problems) == 9
        said_of = {line.split(str(tmp_path))[1].split(": ")[0][1:]: line for line in problems}
        assert "cannot be read" in said_of["broken.json"]
        assert "is no known log; its fields are none" in said_of["config.json"]
        assert "is no known log; its fields are a" in said_of["other.json"]
        assert "its name must say" in said_of["total_dataset_4_x.json"]
        assert f"{SHUFFLED}: is 'no'" in said_of["logs.json, record 2"]
        assert "answers: is null" in said_of["logs.json, record 3"]
        assert "subset: 'shp' is none" in said_of["logs.json, record 4"]
        assert "text_chosen: must be a list of messages" in said_of["logs.json, record 5"]
        assert "is no object" in said_of["logs.json, record 6"]

    def test_a_result_that_contradicts_its_trace(self, tmp_path: Path) -> None:
        rows = [said("B", False, 1), said("A", False, 0.5), said("neither", False, 0.5)]
        write(tmp_path / "logs.json", [row | {"subset": "hep-js", "id": 1} for row in rows])
        records, _, problems = import_logs(tmp_path)
        assert [record.correct for record in records["rewardbench"]] == [0, 1, 0]
        assert len(problems) == 2
        assert "logs.json, record 1: result is 1, but the trace says B" in problems[0]
        assert "the chosen response is A, which scores 0; the trace is believed" in problems[0]

    def test_two_runs_are_not_mixed(self, tmp_path: Path) -> None:
        for run, verdict in (("one", "A"), ("two", "B")):
            row = said(verdict, False, float(verdict == "A")) | {"subset": "hep-js", "id": 1}
            write(tmp_path / run / "logs.json", [row])
        records, _, problems = import_logs(tmp_path)
        assert [record.correct for record in records["rewardbench"]] == [1]
        assert "import one run at a time" in problems[0]

    def test_there_must_be_something(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no such file"):
            import_logs(tmp_path / "absent")
        assert len(import_logs(tmp_path).problems) == 1
