"""What is asked of the judge, and what becomes of its judgements."""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rmr1_jax.evaluation.record import Item
from rmr1_jax.evaluation.runner import Task, judge_tasks, spread, tasks_of
from rmr1_jax.judging import Message, Preference

ALONE, LIST = None, "list"


def item(index: int, *, id: str = "", cell: Any = None, group: str = "g") -> Item:
    id = id or str(index)
    pair = Preference(id, (Message("user", f"q{index}"),), "good", "bad", "A")
    return Item("rmb", id, index, group, cell, pair, draw=index)


class StandIn:
    """Prefers the response that is called good, and finishes the latest pair first."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int]] = []

    def judge(
        self,
        preferences: Iterable[Preference],
        options: Any,
        *,
        samples: int,
        indices: Iterable[int],
        budget: int | None,
        on_progress: Any,
    ) -> Iterator[tuple[int, list[Any]]]:
        pairs = list(preferences)
        self.asked += [
            (pair.id, pair.response_a, index) for pair, index in zip(pairs, indices, strict=True)
        ]
        for position, pair in reversed(list(enumerate(pairs))):
            verdict = "A" if pair.response_a == "good" else "B"
            one = SimpleNamespace(
                verdict=verdict,
                problem=None,
                trace=f"[[{verdict}]]",
                prompt_tokens=3,
                trace_tokens=2,
                confidence=0.75,
                forced=False,
            )
            yield position, [one] * samples


def judged(tasks: list[Task], lengths: list[int], **options: Any) -> tuple[StandIn, list[Any]]:
    judge = StandIn()
    groups = judge_tasks(cast(Any, judge), tasks, lengths, cast(Any, None), **options)
    return judge, [record for records in groups for record in records]


class TestTasks:
    def test_both_orders_of_an_item_stand_together(self) -> None:
        tasks = tasks_of([item(0), item(1)], [("A", "B"), ("B",)])
        assert [(task.item.index, task.chosen_position) for task in tasks] == [
            (0, "A"), (0, "B"), (1, "B"),
        ]  # fmt: skip

    def test_the_judge_sees_the_chosen_response_where_it_is_placed(self) -> None:
        assert Task(item(0), "A").pair.response_a == "good"
        assert Task(item(0), "B").pair.response_a == "bad"

    def test_no_two_share_a_place_in_the_random_stream(self) -> None:
        tasks = tasks_of([item(n) for n in range(5)], [("A", "B")] * 5)
        assert len({task.place for task in tasks}) == 10

    def test_and_it_does_not_depend_on_what_else_is_judged(self) -> None:
        [alone], several = tasks_of([item(3)], [("B",)]), tasks_of([item(2), item(3)], [("B",)] * 2)
        assert alone.place == several[1].place


class TestJudging:
    def test_goes_from_the_shortest_prompt_to_the_longest(self) -> None:
        judge, _ = judged(tasks_of([item(n) for n in range(3)], [("A",)] * 3), [30, 10, 20])
        assert [id for id, _, _ in judge.asked] == ["1", "2", "0"]

    def test_each_verdict_stays_with_its_pair(self) -> None:
        tasks = tasks_of([item(n) for n in range(4)], [("A",), ("B",), ("B",), ("A",)])
        _, records = judged(tasks, [3, 1, 2, 4])
        assert {record.index: record.verdict for record in records} == {
            0: "A",
            1: "B",
            2: "B",
            3: "A",
        }
        assert all(record.correct == 1 and record.confidence == 0.75 for record in records)

    def test_each_vote_is_a_record(self) -> None:
        task = Task(item(0), "A")
        _, records = judged([task], [1], votes=3)
        assert [record.key for record in records] == task.keys(3)

    def test_seconds_sum_up_to_the_time_spent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter([10.0, 11.0, 14.0])
        monkeypatch.setattr("time.monotonic", lambda: next(clock))
        _, records = judged(tasks_of([item(0), item(1)], [("A",)] * 2), [1, 2], votes=2)
        assert sum(record.seconds for record in records) == pytest.approx(4)


class TestSpread:
    def test_takes_pairs_evenly(self) -> None:
        assert [i.index for i in spread([item(n) for n in range(10)], 5)] == [0, 2, 4, 6, 8]

    def test_keeps_a_list_and_a_matrix_whole(self) -> None:
        items = [item(n, id=str(n // 9), cell=(n // 3 % 3, n % 3)) for n in range(36)]
        taken = spread(items, 18)
        assert [i.index for i in taken] == [*range(9), *range(18, 27)]

    def test_no_limit_takes_all(self) -> None:
        items = [item(n) for n in range(3)]
        assert spread(items, None) == items == spread(items, 3)

    def test_one_pair_is_the_least(self) -> None:
        assert len(spread([item(n) for n in range(5)], 1)) == 1
