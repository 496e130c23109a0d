"""Which response is A: the stream of the published runs, or another."""

from dataclasses import replace

import numpy as np
import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.record import Item
from rmr1_jax.evaluation.runner import Order, parse_order, positions
from rmr1_jax.judging import Message, Preference

PAIR = Preference("x", (Message("user", "Q"),), "good", "bad", "A")
ITEMS = [Item("rewardbench", "x", draw, "g", None, PAIR, draw) for draw in range(2985)]


def test_the_published_stream() -> None:
    """As in the published logs: T,T,T,T,F,T,F,T,T,F, and 1,494 of RewardBench's 2,985 at B."""
    found = positions(ITEMS, Order("published"))
    assert [place == ("B",) for place in found[:10]] == [bool(int(bit)) for bit in "1111010110"]
    assert sum(place == ("B",) for place in found) == 1494


def test_a_missing_row_shifts_no_other() -> None:
    whole = positions(ITEMS, Order("published"))
    assert positions(ITEMS[5:90:7], Order("published")) == whole[5:90:7]


def test_files_that_draw_anew_repeat_the_stream() -> None:
    again = [replace(item, index=item.index + 2985) for item in ITEMS]
    found = positions([*ITEMS, *again], Order("published"))
    assert found[:2985] == found[2985:]


def test_another_seed_is_another_stream() -> None:
    drawn = np.random.RandomState(7).rand(2985) > 0.5
    assert [place == ("B",) for place in positions(ITEMS, parse_order("seed=7"))] == drawn.tolist()
    assert positions(ITEMS, parse_order("seed=0")) == positions(ITEMS, parse_order("published"))


def test_both_orders_are_two_passes() -> None:
    assert positions(ITEMS[:2], parse_order("both")) == [("A", "B"), ("A", "B")]


def test_no_items() -> None:
    assert positions([], Order("published")) == []


@pytest.mark.parametrize(
    "text", ["", "Both", "seed", "seed=", "seed=-1", "seed=x", f"seed={2**32}"]
)
def test_an_unknown_order_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="must be published, both, or seed=N"):
        parse_order(text)


@pytest.mark.parametrize("text", ["published", "both", "seed=3"])
def test_an_order_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_order(text)) == text
