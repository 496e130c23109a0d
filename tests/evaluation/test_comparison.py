"""Two runs on the same judgements: is the difference more than luck, and where is it?"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.comparison import compare
from rmr1_jax.evaluation.record import Record, grade
from rmr1_jax.judging import Side

SAID: dict[str, Side | None] = {"A": "A", "B": "B", "-": None}


def run(verdicts: str, *, first: int = 0, **changes: Any) -> dict[str, list[Record]]:
    """A run on preferences; the chosen response is always A."""
    records = [
        Record(
            benchmark="preferences",
            id=f"pair {first + i}",
            index=first + i,
            group="forum",
            cell=None,
            chosen_position="A",
            verdict=SAID[each],
            problem=None if SAID[each] else "none",
            correct=grade(SAID[each], "A"),
        )
        for i, each in enumerate(verdicts)
    ]
    return {"preferences": [replace(each, **changes) for each in records]}


def compared(*verdicts: str, replicates: int = 200) -> dict:
    runs = [(f"run {i}", run(each)) for i, each in enumerate(verdicts)]
    return compare(runs, replicates=replicates)["benchmarks"]["preferences"]


def test_a_part_of_a_benchmark_is_compared_with_the_whole() -> None:
    """Its pairs are the same, wherever its source numbered them."""
    whole, part = run("AABB"), run("BA", first=2)
    part["preferences"] = [replace(each, index=i) for i, each in enumerate(part["preferences"])]
    found = compare([("whole", whole), ("part", part)], replicates=10)["benchmarks"]["preferences"]
    assert found["pairs"] == 2 and found["unmatched"] == [2, 0]
    assert [each["key"]["id"] for each in found["disagree"]] == ["pair 3"]


def test_another_question_under_the_same_name_is_not_compared() -> None:
    one, other = run("AAB", prompt="x"), run("ABB", prompt="x")
    other["preferences"][0] = replace(other["preferences"][0], prompt="y")
    other["preferences"][1] = replace(other["preferences"][1], prompt=None)  # may be the same
    found = compare([("one", one), ("other", other)], replicates=10)["benchmarks"]["preferences"]
    assert found["pairs"] == 2 and found["unmatched"] == [1, 1]


def test_a_headline_of_plain_accuracy_differs_as_accuracy_does() -> None:
    found = compared("AABB" * 50, "AABA" * 10 + "AABB" * 40, replicates=500)
    ((headline,), (plain,)) = found["headline_differences"]["overall"], found["differences"]
    assert headline["difference"] == pytest.approx(plain["difference"])
    assert (headline["low"], headline["high"]) == (plain["low"], plain["high"])


class TestDifference:
    def test_counts_and_p(self) -> None:
        found = compared("AAAAAAABBB" * 2, "AAABBBBABB" * 2)
        (difference,) = found["differences"]
        assert (difference["a"], difference["b"], difference["n"]) == (0, 1, 20)
        assert difference["difference"] == pytest.approx(-0.3)
        names = ("only_a", "only_b", "both_right", "both_wrong")
        assert [difference[name] for name in names] == [8, 2, 6, 4]
        assert difference["p"] == pytest.approx(2 * (1 + 10 + 45) / 1024)

    def test_the_interval_is_paired(self) -> None:
        """Both runs are unsure by themselves, yet one is better wherever they differ."""
        a, b = "AABB" * 50, "AABA" * 10 + "AABB" * 40
        found = compared(a, b, replicates=1000)
        (difference,) = found["differences"]
        assert difference["difference"] == pytest.approx(0.05)
        spread = np.sqrt(0.05 * 0.95 / 200)
        assert difference["low"] == pytest.approx(0.05 - 1.96 * spread, abs=0.006)
        assert difference["high"] == pytest.approx(0.05 + 1.96 * spread, abs=0.006)
        assert found["accuracy"][0]["stderr"] > 2 * spread

    def test_a_run_against_itself(self) -> None:
        found = compared("AABA-", "AABA-")
        (difference,) = found["differences"]
        assert (difference["low"], difference["difference"], difference["high"]) == (0, 0, 0)
        assert difference["p"] == 1.0
        assert found["disagree"] == []

    def test_three_runs_are_compared_two_by_two(self) -> None:
        found = compared("AAB", "ABB", "AAA")
        assert [(each["a"], each["b"]) for each in found["differences"]] == [(0, 1), (0, 2), (1, 2)]
        assert [score["value"] for score in found["accuracy"]] == [2 / 3, 1 / 3, 1.0]
        assert found["headline"]["overall"] == [2 / 3, 1 / 3, 1.0]
        assert not any(name.startswith("groups") for name in found["headline"])


class TestPairs:
    def test_only_shared_judgements_count(self) -> None:
        found = compare([("a", run("AAAA")), ("b", run("BBBBB", first=2))], replicates=10)
        part = found["benchmarks"]["preferences"]
        assert part["pairs"] == 2
        assert part["unmatched"] == [2, 3]
        assert [score["value"] for score in part["accuracy"]] == [1.0, 0.0]

    def test_the_order_of_records_does_not_matter(self) -> None:
        a, b = run("ABAB"), run("ABBA")
        turned = {"preferences": b["preferences"][::-1]}
        expected = compare([("a", a), ("b", b)], replicates=50)
        assert compare([("a", a), ("b", turned)], replicates=50) == expected

    def test_other_orders_are_other_judgements(self) -> None:
        swapped = run("AA", chosen_position="B", correct=0.0)
        with pytest.raises(UserError, match="have no judgement in common"):
            compare([("a", run("AA")), ("b", swapped)])

    def test_votes_count_as_their_majority(self) -> None:
        votes = [
            replace(run(each)["preferences"][0], sample=i) for i, each in enumerate("BAA-B" + "A")
        ]
        found = compare([("one", run("B")), ("six", {"preferences": votes})], replicates=10)
        (one,) = found["benchmarks"]["preferences"]["disagree"]
        assert one["verdicts"] == ["B", "A"]
        assert one["correct"] == [0, 1]

    def test_prompts_may_be_known_to_one_run_alone(self) -> None:
        """All answers to one prompt are drawn together, whichever run says that it is one."""
        known = run("AABB", prompt="0123456789abcdef")
        found = compare([("a", run("ABBB")), ("b", known)], replicates=50)
        (difference,) = found["benchmarks"]["preferences"]["differences"]
        assert (difference["low"], difference["high"]) == (0.25, 0.25)


class TestDisagreement:
    def test_is_named_so_that_it_can_be_found(self) -> None:
        found = compared("AB-", "ABB")
        assert found["disagree"] == [
            {
                "key": {
                    "id": "pair 2",
                    "group": "forum",
                    "index": 2,
                    "cell": None,
                    "chosen_position": "A",
                },
                "verdicts": [None, "B"],
                "correct": [0, 0],
            }
        ]


class TestWhole:
    def test_is_json(self) -> None:
        found = compare(
            [("a", run("AB", trace_tokens=10)), ("b", run("BB", trace_tokens=30))], replicates=5
        )
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert found["runs"] == ["a", "b"]
        assert found["mean_trace_tokens"] == [10, 30]

    def test_a_benchmark_of_one_run_is_named(self) -> None:
        more = run("A") | {"rmb": [replace(run("A")["preferences"][0], benchmark="rmb")]}
        found = compare([("a", more), ("b", run("A"))], replicates=5)
        assert found["not_compared"] == ["rmb"]

    def test_one_run_is_none_to_compare(self) -> None:
        with pytest.raises(UserError, match="two or more"):
            compare([("a", run("A"))])

    def test_runs_with_nothing_in_common_are_named(self) -> None:
        runs = [("one", run("A")), ("two", run("AA")), ("far", run("A", first=9))]
        with pytest.raises(UserError, match=r"^one and far have no judgement in common"):
            compare(runs)

    def test_nothing_that_all_of_them_share(self) -> None:
        runs = [("a", run("AA")), ("b", run("AA", first=1))]
        with pytest.raises(UserError, match="no judgement is in all of a, b, c"):
            compare(
                [
                    *runs,
                    (
                        "c",
                        {"preferences": run("A")["preferences"] + run("A", first=2)["preferences"]},
                    ),
                ]
            )
