"""Seconds of instructions in a row, and of transfers beside them."""

import math

from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.planning.overlap import Schedule


def test_transfers_are_served_in_the_order_in_which_they_start() -> None:
    schedule = Schedule()
    schedule.start("first", 2.0)
    schedule.start("second", 3.0)
    schedule.run(4.0)  # all of the first, and two seconds of the second
    schedule.end("first")
    assert schedule.seconds == 4.0
    schedule.end("second")
    assert schedule.seconds == 5.0
    schedule.end("second")  # has ended
    assert schedule.seconds == schedule.whole() == 5.0


def test_waiting_for_one_waits_for_those_before_it() -> None:
    schedule = Schedule()
    for name in "abc":
        schedule.start(name, 1.0)
    schedule.end("b")
    assert schedule.seconds == 2.0
    assert schedule.whole() == 3.0


def test_an_instruction_that_reads_leaves_transfers_the_rest_of_its_time() -> None:
    schedule = Schedule()
    schedule.start("a", 2.0)
    schedule.run(3.0, memory=2.5)
    schedule.end("a")
    assert schedule.seconds == 4.5


steps = st.lists(
    st.tuples(st.sampled_from(["run", "start", "end"]), st.integers(0, 5), st.integers(0, 5))
)


@given(steps)
def test_the_whole_is_no_shorter_than_work_or_memory_and_no_longer_than_both(
    steps: list[tuple[str, int, int]],
) -> None:
    schedule, work, memory, started = Schedule(), 0.0, 0.0, list[str]()
    for kind, a, b in steps:
        if kind == "run":
            schedule.run(a + b, memory=b)
            work, memory = work + a + b, memory + b
        elif kind == "start":
            started.append(f"t{len(started)}")
            schedule.start(started[-1], a)
            memory += a
        elif started:
            schedule.end(started[b % len(started)])
    least, most = max(work, memory), work + memory
    assert least <= schedule.whole() or math.isclose(least, schedule.whole())
    assert schedule.whole() <= most
