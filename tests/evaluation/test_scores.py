"""Records in, scores out: everything a report is made of, from records alone."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmarks.rewardbench import SUBSETS
from rmr1_jax.evaluation.record import Record, grade
from rmr1_jax.evaluation.scores import nested, plain, score_run
from rmr1_jax.judging import Side

# Judgements that RM-R1-Qwen2.5-Instruct-32B got right in its published RewardBench run.
INSTRUCT_32B = {
    "alpacaeval-easy": 94,
    "alpacaeval-length": 91,
    "alpacaeval-hard": 91,
    "mt-bench-easy": 26,
    "mt-bench-med": 39,
    "mt-bench-hard": 31,
    "llmbar-natural": 95,
    "llmbar-adver-neighbor": 104,
    "llmbar-adver-GPTInst": 78,
    "llmbar-adver-GPTOut": 34,
    "llmbar-adver-manual": 37,
    "refusals-dangerous": 93,
    "refusals-offensive": 98,
    "xstest-should-refuse": 152,
    "xstest-should-respond": 235,
    "donotanswer": 102,
    "math-prm": 416,
    "hep-cpp": 162,
    "hep-go": 159,
    "hep-java": 157,
    "hep-js": 161,
    "hep-python": 160,
    "hep-rust": 159,
}


def judged(number: int, verdict: Side | None, at: Side = "A", **changes: Any) -> Record:
    record = Record(
        benchmark="preferences",
        id=f"pair {number}",
        index=number,
        group="forum",
        cell=None,
        chosen_position=at,
        verdict=verdict,
        problem=None if verdict else "none",
        correct=grade(verdict, at),
    )
    return replace(record, **changes)


def scored(*records: Record, replicates: int = 20) -> dict:
    return score_run({"preferences": records}, replicates=replicates)["preferences"]


def published_run() -> list[Record]:
    records: list[Record] = []
    for subset, rows in SUBSETS.items():
        for row in range(rows):
            verdict: Side = "A" if row < INSTRUCT_32B[subset] else "B"
            one = judged(len(records), verdict, benchmark="rewardbench", group=subset)
            records.append(one)
    return records


class TestPublishedRun:
    def test_the_errors_are_those_of_the_formula(self) -> None:
        """In points: Chat 1.1, Chat Hard 1.8, Safety 1.0, Reasoning 0.65, overall 0.60."""
        found = score_run({"rewardbench": published_run()})["rewardbench"]
        errors = {name: 100 * found[name]["stderr"] for name in ("chat", "chat_hard", "safety")}
        assert errors == pytest.approx({"chat": 1.1, "chat_hard": 1.75, "safety": 1.0}, abs=0.1)
        assert 100 * found["reasoning"]["stderr"] == pytest.approx(0.65, abs=0.05)
        assert 100 * found["overall"]["stderr"] == pytest.approx(0.60, abs=0.04)

    def test_the_values_are_the_published_ones(self) -> None:
        found = score_run({"rewardbench": published_run()}, replicates=0)["rewardbench"]
        assert found["overall"]["value"] == pytest.approx(0.913672, abs=1e-6)
        assert found["micro"]["value"] == 2774 / 2985
        assert found["subsets"]["donotanswer"]["value"] == 0.75
        assert found["missing"] == []
        assert found["overall"]["complete"] and found["overall"]["stderr"] is None


class TestShape:
    def test_is_json_without_nan(self) -> None:
        records = {
            "rewardbench": [judged(0, "A", benchmark="rewardbench", group="donotanswer")],
            "rm_bench": [
                judged(0, "A", benchmark="rm_bench", id="chat/1", group="chat", cell=(0, 0))
            ],
        }
        found = score_run(records, replicates=5)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert found["rewardbench"]["chat"] == {
            "value": None,
            "n": 0,
            "complete": False,
            "stderr": None,
        }
        assert found["rm_bench"]["matrix"]["as_published"][0][1] is None
        assert found["bootstrap"] == {"replicates": 5, "seed": 0}

    def test_names_are_cut_at_the_first_dot(self) -> None:
        assert nested({"overall": 1, "groups.v1.0": 2, "groups.b": 3}) == {
            "overall": 1,
            "groups": {"v1.0": 2, "b": 3},
        }

    def test_numbers_are_plain(self) -> None:
        found = plain({"a": np.float64(0.5), "b": [np.int64(2), math.nan], "c": np.ones((1, 2))})
        assert found == {"a": 0.5, "b": [2, None], "c": [[1.0, 1.0]]}
        assert type(found["a"]) is float and type(found["b"][0]) is int

    def test_twice_the_same(self) -> None:
        records = [judged(i, "A" if i % 3 else "B") for i in range(12)]
        assert scored(*records) == scored(*records)

    def test_an_unknown_benchmark_is_named(self) -> None:
        with pytest.raises(UserError, match=r"'rewardbank' is not known; there are rewardbench"):
            score_run({"rewardbank": []})

    def test_no_records_give_no_numbers(self) -> None:
        found = scored()
        assert found["overall"]["value"] is None
        assert found["judgements"] == 0
        assert found["by_length"] is found["confidence"] is found["votes"] is None


class TestMissing:
    def test_what_the_loader_missed_is_copied(self) -> None:
        missing = {"rewardbench": ["subset hep-go: 0 of 164"]}
        record = judged(0, "A", benchmark="rewardbench", group="donotanswer")
        found = score_run({"rewardbench": [record]}, missing=missing, replicates=2)
        assert found["rewardbench"]["missing"] == missing["rewardbench"]

    @pytest.mark.parametrize("missing", [None, {"rewardbench": []}])
    def test_otherwise_the_incomplete_scores_are_named(
        self, missing: dict[str, list[str]] | None
    ) -> None:
        """Also where the items were all there, and not all of them are judged."""
        record = judged(0, "A", benchmark="rewardbench", group="donotanswer")
        records = {"rewardbench": [record]}
        found = score_run(records, missing=missing, replicates=2)["rewardbench"]
        assert "chat: nothing judged" in found["missing"]
        assert "subsets.donotanswer: incomplete (1 judged)" in found["missing"]


def test_counts_of_problems_and_cost() -> None:
    found = scored(
        judged(0, "A", trace_tokens=100, seconds=2.0),
        judged(1, None, problem="truncated", trace_tokens=300, seconds=2.0),
        judged(2, None, problem="both"),
        judged(3, "B", forced=True),
        judged(4, None, problem="prompt_too_long"),
        judged(5, None),
    )
    assert found["judgements"] == 6
    counts = {name: found[name] for name in ("truncated", "none", "both", "prompt_too_long")}
    assert counts == {"truncated": 1, "none": 1, "both": 1, "prompt_too_long": 1}
    assert found["forced"] == 1
    assert found["mean_trace_tokens"] == 200
    assert (found["seconds"], found["tokens_per_second"]) == (4.0, 100.0)


class TestPosition:
    def test_a_judge_that_always_says_a(self) -> None:
        found = scored(*(judged(i, "A", at) for i in range(5) for at in ("A", "B")))["position"]
        values = {name: score["value"] for name, score in found.items()}
        assert values == {"said_a": 1.0, "chosen_a": 1.0, "chosen_b": 0.0, "consistent": 0.0}
        assert found["consistent"]["n"] == 5
        assert found["chosen_b"]["n"] == 5

    def test_the_wrong_response_in_both_orders_is_consistent(self) -> None:
        found = scored(
            *(judged(0, "B", "A"), judged(0, "A", "B")),
            *(judged(1, "A", "A"), judged(1, None, "B")),
        )["position"]
        assert found["consistent"]["value"] == 0.5
        assert found["said_a"] | {"stderr": 0} == {
            "value": 2 / 3,
            "n": 3,
            "complete": True,
            "stderr": 0,
        }

    def test_one_order_says_nothing_about_consistency(self) -> None:
        assert scored(judged(0, "A"), judged(1, "B", "B"))["position"]["consistent"] is None


class TestConfidence:
    def test_is_the_probability_of_the_verdict_given(self) -> None:
        found = scored(
            judged(0, "B", "B", confidence=0.25),
            judged(1, "A", "B", confidence=0.97),
            judged(2, "A", "A", confidence=1.0),
            judged(3, None, confidence=0.5),
        )["confidence"]
        assert found["n"] == 3
        assert found["mean"] == pytest.approx((0.75 + 0.97 + 1) / 3)
        assert found["bins"] == [
            {"from": 0.7, "to": 0.8, "n": 1, "accuracy": 1.0},
            {"from": 0.9, "to": 1.0, "n": 2, "accuracy": 0.5},
        ]


class TestLength:
    def test_bins_hold_about_as_many(self) -> None:
        records = [judged(i, "A" if i < 60 else "B", trace_tokens=10 * i) for i in range(100)]
        found = scored(*records)["by_length"]
        assert [each["n"] for each in found] == [20] * 5
        assert [each["accuracy"] for each in found] == [1, 1, 1, 0, 0]
        assert (found[0]["from"], found[-1]["to"]) == (0, 990)
        assert all(a["to"] < b["from"] for a, b in itertools.pairwise(found))

    def test_equal_lengths_share_a_bin(self) -> None:
        lengths = [8] * 7 + [9, 512, 512]
        found = scored(*(judged(i, "A", trace_tokens=n) for i, n in enumerate(lengths)))
        bins = [(each["from"], each["to"], each["n"]) for each in found["by_length"]]
        assert bins == [(8, 8, 7), (9, 9, 1), (512, 512, 2)]


class TestVotes:
    def samples(self, number: int, verdicts: str) -> list[Record]:
        said: dict[str, Side | None] = {"A": "A", "B": "B", "-": None}
        return [judged(number, said[each], sample=i) for i, each in enumerate(verdicts)]

    def test_the_curve_ends_at_the_majority(self) -> None:
        records = [*self.samples(0, "AAB"), *self.samples(1, "ABB"), *self.samples(2, "A--")]
        found = scored(*records)
        assert [each["k"] for each in found["votes"]] == [1, 2, 3]
        first, second, last = (each["value"] for each in found["votes"])
        assert first == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)
        assert second == pytest.approx((1 / 3 + 0 + 2 / 3) / 3)
        assert last == found["overall"]["value"] == 2 / 3
        assert found["votes"][2]["stderr"] > 0

    def test_all_scores_are_of_the_majority(self) -> None:
        found = scored(*self.samples(0, "BAA"))
        assert found["position"]["chosen_a"]["value"] == 1.0
        assert (found["judgements"], found["overall"]["n"]) == (3, 1)

    def test_one_sample_has_no_curve(self) -> None:
        assert scored(*self.samples(0, "A"))["votes"] is None


class TestAverage:
    def run(self) -> dict:
        return {
            "rewardbench": published_run(),
            "rm_bench": [
                judged(
                    i,
                    "A" if (row, column) != (0, 2) else "B",
                    benchmark="rm_bench",
                    id=f"{domain}/{i}",
                    group=domain,
                    cell=(row, column),
                )
                for i, domain in enumerate(("chat", "math", "code", "safety-refuse"))
                for row in range(3)
                for column in range(3)
            ],
            "rmb": [
                judged(
                    i,
                    "A",
                    benchmark="rmb",
                    group=f"{kind}/{side}",
                    cell=("q", 0) if kind == "BoN_set" else None,
                )
                for kind in ("Pairwise_set", "BoN_set")
                for i, side in enumerate(("Helpfulness/Chat/Discussion", "Harmlessness/S1"))
            ],
        }

    def test_is_the_mean_of_the_three(self) -> None:
        found = score_run(self.run(), replicates=10)
        parts = [
            found["rewardbench"]["overall"],
            found["rm_bench"]["corrected"]["total"],
            found["rmb"]["overall"],
        ]
        mean = found["average_corrected"]
        assert mean["value"] == pytest.approx(sum(part["value"] for part in parts) / 3)
        errors = [part["stderr"] for part in parts]
        assert mean["stderr"] == pytest.approx(math.hypot(*errors) / 3)
        assert mean["n"] == sum(part["n"] for part in parts)
        assert not mean["complete"]
        assert found["average"]["value"] < mean["value"]

    def test_lacks_a_value_where_one_is_absent(self) -> None:
        records = self.run()
        del records["rmb"]
        found = score_run(records, replicates=10)
        assert found["average"]["value"] is found["average"]["stderr"] is None
        assert found["average"]["complete"] is False
