"""Any file of preferences as a benchmark."""

import json
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmarks.preferences import load, make_table
from tests.evaluation.made import Rejects, judged, values

PAIR = {"question": "Q", "response_a": "left", "response_b": "right"}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


class TestScores:
    def test_accuracy_over_all_and_by_group(self) -> None:
        rights = {"forum": [1, 0, 1], "exam": [1]}
        records = [
            judged("preferences", right, id=f"{group}{number}", group=group)
            for group, each in rights.items()
            for number, right in enumerate(each)
        ]
        table = make_table(records)
        assert values(table) == {
            "overall": 0.75,
            "groups.exam": 1.0,
            "groups.forum": pytest.approx(2 / 3),
        }
        assert table.support() == {
            "overall": (4, True),
            "groups.exam": (1, True),
            "groups.forum": (3, True),
        }
        assert values(table, [0, 1, 0, 1])["overall"] == 0.5

    def test_by_source_and_within_it_by_type(self) -> None:
        rights = {"forum > law": [1, 0], "forum > math": [1, 1], "exam > math": [0]}
        table = make_table(
            [
                judged("preferences", right, id=f"{group}{number}", group=group)
                for group, each in rights.items()
                for number, right in enumerate(each)
            ]
        )
        assert values(table) == {
            "overall": 0.6,
            "groups.exam > math": 0.0,
            "groups.forum": 0.75,
            "groups.forum > law": 0.5,
            "groups.forum > math": 1.0,
        }
        assert table.support()["groups.forum"] == (4, True)

    def test_a_pass_that_is_not_whole_is_not_complete(self) -> None:
        records = [
            judged("preferences", 1, id="a"),
            judged("preferences", 0, id="a", position="B"),
            judged("preferences", 1, id="b"),
        ]
        table = make_table(records)
        assert values(table)["overall"] == 0.5  # the means of the passes are 1 and 0
        assert table.support()["overall"] == (2, False)


class TestLoad:
    @pytest.mark.parametrize(
        ("name", "count", "rejected", "group"),
        [
            ("judgebench-claude.jsonl", 270, 0, "mmlu-pro-health"),
            ("hh-rlhf-harmless-base-test.jsonl.gz", 2303, 9, "hh-rlhf-harmless-base-test.jsonl.gz"),
            ("dpo_en_demo.json", 300, 0, "dpo_en_demo.json"),
        ],
    )
    def test_published_layouts(
        self, shared_data: Path, name: str, count: int, rejected: int, group: str
    ) -> None:
        rejects = Rejects()
        items, missing = load(str(shared_data / "pref" / name), rejects)
        said = [f"{rejected} of {count + rejected:,} records"] if rejected else []
        assert (len(items), len(rejects.found), missing) == (count, rejected, said)
        assert items[0].group == group
        assert all(item.pair.label == "A" for item in items)

    def test_the_chosen_response_is_a(self, tmp_path: Path) -> None:
        rows = [PAIR | {"label": "A"}, PAIR | {"label": "B"}]
        items = load(write(tmp_path / "x.jsonl", rows), Rejects()).items
        assert [item.pair.response_a for item in items] == ["left", "right"]
        assert [(item.id, item.index, item.draw) for item in items] == [("1", 0, 0), ("2", 1, 1)]

    def test_the_group_is_what_the_record_says_or_else_the_file(self, tmp_path: Path) -> None:
        labelled = PAIR | {"label": "A"}
        said: list[dict[str, object]] = [
            {"source": "forum", "type": "chat"},
            {"source": None, "type": "chat"},
            {"subset": "hard", "category": "law"},
            {"category": "law", "source": 3},
            {},
        ]
        source = write(tmp_path / "mine.jsonl", [labelled | each for each in said])
        groups = [item.group for item in load(source, Rejects()).items]
        assert groups == ["forum > chat", "chat", "hard", "law", "mine.jsonl"]

    def test_what_cannot_be_judged_is_rejected(self, tmp_path: Path) -> None:
        rows = [
            PAIR | {"label": "A", "id": "x"},
            PAIR,
            PAIR | {"label": "A", "response_b": ""},
            PAIR | {"label": "A", "id": "x"},
            {"context_messages": [{"role": "user", "content": "Q"}], "winner": "model_a"},
            PAIR | {"label": "A", "id": "y"},
        ]
        rejects = Rejects()
        items, missing = load(write(tmp_path / "x.jsonl", rows), rejects)
        assert missing == ["4 of 6 records"]
        assert [(item.id, item.draw) for item in items] == [("x", 0), ("y", 5)]
        assert dict(rejects.found) == {
            2: 'label: is missing; say which response won, "A" or "B"',
            3: "response_b: is empty; it must hold some text",
            4: "id: 'x': was given to record 1; make ids unique",
            5: "context_messages: is a rendered prompt; give the pair itself",
        }

    def test_a_broken_line_is_a_reject_but_at_the_end_an_unfinished_file(
        self, tmp_path: Path
    ) -> None:
        line = json.dumps(PAIR | {"label": "A"})
        (tmp_path / "x.jsonl").write_text(f"{line}\n{line[:20]}\n{line}\n")
        rejects = Rejects()
        assert len(load(str(tmp_path / "x.jsonl"), rejects).items) == 2
        assert [number for number, _ in rejects.found] == [2]
        (tmp_path / "x.jsonl").write_text(f"{line}\n{line[:20]}")
        with pytest.raises(UserError, match="line 2: is cut short or damaged"):
            load(str(tmp_path / "x.jsonl"), Rejects())

    def test_what_holds_no_preferences_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="give a file"):
            load("", Rejects())
        with pytest.raises(UserError, match="its fields are text"):
            load(write(tmp_path / "x.jsonl", [{"text": "Q"}]), Rejects())
