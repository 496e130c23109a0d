"""RMB: pairs, Best-of-N queries, and the folder tree that they come in."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmarks.rmb import SCENARIOS, SECTIONS, load, make_table
from rmr1_jax.evaluation.record import Record
from tests.evaluation.made import Rejects, judged, values

PAIRS = "Pairwise_set/Harmlessness/S1"
BEST = "BoN_set/Helpfulness/Chat/Discussion"
ASKED = [{"role": "user", "content": "Q", "language": "English"}]


def pairwise(uid: object, **changes: object) -> dict[str, object]:
    record: dict[str, object] = {
        "pair_uid": uid,
        "conversation_input": ASKED,
        "chosen": {"llm_name": "x", "answer": "good"},
        "reject": {"llm_name": "y", "answer": "bad"},
        "category_path": PAIRS,
    }
    return record | changes


def best_of_n(uid: object, losers: list[str], **changes: object) -> dict[str, object]:
    record: dict[str, object] = {
        "bon_uid": uid,
        "conversation_input": ASKED,
        "bon_best": {"llm_name": "x", "answer": "good"},
        "loser_list": [{"llm_name": "y", "answer": loser} for loser in losers],
        "category_path": BEST,
    }
    return record | changes


def query(uid: str, rights: list[int], group: str = BEST, **fields: Any) -> list[Record]:
    return [
        judged("rmb", right, id=uid, group=group, cell=(uid, loser), **fields)
        for loser, right in enumerate(rights)
    ]


def pairs(rights: list[int], group: str = PAIRS) -> list[Record]:
    return [
        judged("rmb", right, id=str(number), index=number, group=group)
        for number, right in enumerate(rights)
    ]


class TestScores:
    @pytest.mark.parametrize(
        ("rights", "expected"), [([1, 1, 0], 0), ([1, 1, 1], 1), ([1, 1, 2], 0), ([0, 0], 0)]
    )
    def test_a_query_counts_if_all_of_it_is_right(self, rights: list[int], expected: int) -> None:
        found = values(make_table(query("7", rights)))
        assert found["bon_helpfulness"] == found[f"scenarios.{BEST}"] == expected

    def test_a_pair_that_is_there_twice_is_refused(self) -> None:
        again = [replace(each, index=9, correct=0.0) for each in pairs([1])]
        with pytest.raises(UserError, match="records of two runs are mixed"):
            make_table([*pairs([1]), *again])

    def test_half_right_is_not_right(self) -> None:
        half = Record("rmb", "7", 0, BEST, ("7", 1), "A", None, "none", 0.5)
        table = make_table([*query("7", [1]), half], "rewardbench")
        assert values(table)["bon_helpfulness"] == 0

    def test_the_published_mean_of_the_four_sections(self) -> None:
        """Instruct-32B, from the counts of its Final_score.json: META .730136."""
        records = [
            *pairs([1] * 8071 + [0] * 1996, "Pairwise_set/Helpfulness/Chat/Discussion"),
            *pairs([1] * 5692 + [0] * 1372),
        ]
        sections = {BEST: (1372, 2109, 4895), "BoN_set/Harmlessness/S1": (1111, 1677, 3819)}
        for group, (right, queries, judgements) in sections.items():
            for number in range(queries):
                losers = 2 if number < queries - 1 else judgements - 2 * (queries - 1)
                rights = [1] * losers if number < right else [1] * (losers - 1) + [0]
                records += query(str(number), rights, group, index=number)
        table = make_table(records)
        expected = {
            "pairwise_helpfulness": 0.801728, "pairwise_harmlessness": 0.805776,
            "bon_helpfulness": 0.650545, "bon_harmlessness": 0.662493, "overall": 0.730136,
        }  # fmt: skip
        found = values(table)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
        support = table.support()
        assert support["bon_helpfulness"] == (2109, True)
        assert support["pairwise_harmlessness"] == (7064, True)
        assert support["overall"] == (10067 + 7064 + 2109 + 1677, True)
        assert make_table(records[:-1]).support()["bon_harmlessness"] == (1677, False)

    def test_the_counts_are_those_of_the_paper(self) -> None:
        assert sum(section.pairs for section in SECTIONS.values()) == 25845
        assert [len(each) for each in SCENARIOS.values()] == [37, 12]

    def test_sections_that_are_absent(self) -> None:
        table = make_table([*query("1", [1, 1]), *query("2", [0, 1]), *pairs([1, 0, 1, 1])])
        found, support = values(table), table.support()
        assert found["bon_helpfulness"] == 0.5 and support["bon_helpfulness"] == (2, False)
        assert found["pairwise_harmlessness"] == 0.75
        assert np.isnan(found["pairwise_helpfulness"])
        assert support["pairwise_helpfulness"] == (0, False)
        assert found["overall"] == 0.625 and support["overall"] == (6, False)
        assert support[f"scenarios.{PAIRS}"] == (4, False)

    def test_a_query_is_judged_anew_in_the_other_order(self) -> None:
        records = [*query("1", [1, 1]), *query("1", [1, 0], position="B")]
        assert values(make_table(records))["bon_helpfulness"] == 0.5

    def test_votes_are_counted_for_each_loser(self) -> None:
        votes = [[1, 0], [1, 1], [0, 1]]
        records = [r for n, each in enumerate(votes) for r in query("1", each, sample=n)]
        assert values(make_table(records))["bon_helpfulness"] == 1

    def test_a_query_of_the_same_uid_as_a_pair_is_another_prompt(self) -> None:
        table = make_table([*query("0", [1, 1]), *pairs([0])])
        assert len(table.strata) == 2
        assert values(table, [1, 0])["bon_helpfulness"] == 1
        assert np.isnan(values(table, [1, 0])["pairwise_harmlessness"])

    def test_records_of_something_else(self) -> None:
        with pytest.raises(UserError, match="group: is 'chat'; it must begin with one of Pairwise"):
            make_table([judged("rmb", 1, group="chat")])
        with pytest.raises(UserError, match="cell: is missing; it must be the id of the query"):
            make_table([judged("rmb", 1, group=BEST)])


class TestLoad:
    def write(self, path: Path, rows: list[Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))

    def test_the_development_slice(self, shared_data: Path) -> None:
        rejects = Rejects()
        items, missing = load(str(shared_data / "rmb"), rejects)
        assert len(items) == 589 + 226 + 143 and not rejects.found
        assert [item.index for item in items] == [*range(958)]
        assert [item.draw for item in items[:343]] == [*range(343)]
        assert items[343].draw == 0 and items[343].group.startswith("Pairwise_set/Harmlessness")
        assert len(missing) == 4
        assert missing[1] == "Pairwise_set/Harmlessness: 246 of 7,064 pairs; nothing of S11"
        assert missing[3] == "BoN_set/Harmlessness: 62 of 1,677 queries (143 of 3,819 pairs)"
        assert {len(item.pair.context) for item in items} == {1, 3, 5}
        known = {name for each in SCENARIOS.values() for name in each}
        assert {item.group.split("/", 2)[2] for item in items} <= known

    def test_a_folder_below(self, shared_data: Path) -> None:
        items, missing = load(str(shared_data / "rmb" / "BoN_set" / "Harmlessness"), Rejects())
        assert len(items) == 143 and items[0].draw == 0
        assert missing[0] == "Pairwise_set/Helpfulness: 0 of 10,067 pairs"

    def test_items_are_sorted_by_scenario_and_uid(self, tmp_path: Path) -> None:
        self.write(tmp_path / "b.json", [best_of_n(30, ["x", "y"]), best_of_n("4", ["z"])])
        other = "Pairwise_set/Harmlessness/S10"
        self.write(tmp_path / "a.json", [pairwise("10"), pairwise("9")])
        self.write(tmp_path / "c.json", [pairwise("1", category_path=other)])
        items = load(str(tmp_path), Rejects()).items
        assert [(item.id, item.cell, item.draw) for item in items] == [
            ("9", None, 0), ("10", None, 1), ("1", None, 2),
            ("4", ("4", 0), 0), ("30", ("30", 0), 1), ("30", ("30", 1), 2),
        ]  # fmt: skip
        assert [item.pair.response_b for item in items[3:]] == ["z", "x", "y"]

    def test_a_conversation_keeps_its_roles(self, tmp_path: Path) -> None:
        turns = [*ASKED, {"role": "assistant", "content": "R", "language": "English"}, *ASKED]
        self.write(tmp_path / "a.json", [pairwise("1", conversation_input=turns)])
        (item,) = load(str(tmp_path), Rejects()).items
        assert [m.role for m in item.pair.context] == ["user", "assistant", "user"]

    def test_bad_records_are_rejected_and_shift_no_other(self, tmp_path: Path) -> None:
        self.write(
            tmp_path / "a.json",
            [
                pairwise("1", chosen={"answer": " "}),
                pairwise("2"),
                pairwise("2"),
                pairwise("3", conversation_input=[]),
                pairwise("4", category_path="Elsewhere/S1"),
                pairwise("5", reject={"answer": 7}),
                pairwise("6"),
                best_of_n("1", ["x", ""]),
                best_of_n("2", []),
                best_of_n("3", ["x"]),
            ],
        )
        rejects = Rejects()
        items = load(str(tmp_path / "a.json"), rejects).items
        assert [(item.id, item.draw) for item in items] == [("2", 1), ("6", 4), ("3", 2)]
        assert dict(rejects.found) == {
            1: "chosen.answer: is empty; it must hold some text",
            3: f"pair_uid: '2': was given to record 2 of {tmp_path / 'a.json'}; make ids unique",
            4: "conversation_input: is a list of 0; it must be a list of "
            '{"role", "content"} messages',
            5: "category_path: is 'Elsewhere/S1'; it must begin with one of "
            + ", ".join(section.path for section in SECTIONS.values()),
            6: "reject.answer: is 7; it must be a text",
            8: "loser_list[1].answer: is empty; it must hold some text",
            9: "loser_list: must be a list of the responses that lost",
        }

    def test_the_hub_has_it_in_two_flattened_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Layout of the cards of ilgee/RMB-Pairwise and ilgee/RMB-BoN."""
        flat: dict[str, Any] = {
            "conversation": ASKED,
            "chosen": "good",
            "alignment_goal": "Harmlessness",
        }
        rows: dict[str, dict[str, Any]] = {
            "ilgee/RMB-Pairwise": {"pair_uid": "7", "category_path": PAIRS, "rejected": "bad"},
            "ilgee/RMB-BoN": {"bon_uid": "8", "category_path": BEST, "rejected": ["bad", "worse"]},
        }

        def hub_rows(source: str, name: str, split: str) -> Any:
            assert split == "test"
            return lambda: iter([(1, flat | rows[name])])

        monkeypatch.setattr("rmr1_jax.evaluation.benchmark_rows.hub_rows", hub_rows)
        items = load("", Rejects()).items
        assert [(item.id, item.cell) for item in items] == [
            ("7", None),
            ("8", ("8", 0)),
            ("8", ("8", 1)),
        ]
        assert [item.pair.response_a for item in items] == ["good"] * 3
        assert [item.pair.response_b for item in items] == ["bad", "bad", "worse"]

    def test_what_is_no_rmb_is_refused(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a.json", [{"prompt": "Q"}])
        with pytest.raises(
            UserError, match=r"a.json: has the fields prompt; it needs pair_uid, .* or b"
        ):
            load(str(tmp_path), Rejects())
        (tmp_path / "a.json").write_text('[{"pair_uid": ')
        with pytest.raises(UserError, match=r"a.json: is not JSON"):
            load(str(tmp_path), Rejects())
