"""What a plan says in sentences."""

import pytest

from rmr1_jax.config import SftConfig
from rmr1_jax.planning.chips import CHIPS, GIB
from rmr1_jax.planning.compiled import Compiled, Memory
from rmr1_jax.planning.plan import Line, Plan
from rmr1_jax.planning.programs import Planned
from rmr1_jax.planning.report import sentences
from rmr1_jax.planning.topology import parse_topology


def said(topology: str, needed: float) -> str:
    """Of a plan whose only program takes so many GiB of a device."""
    planned = Planned("update", lambda: None, runs=1)
    memory = Memory(arguments=int(needed * GIB), temporaries=0, results=0, resident=0)
    asked = parse_topology(topology)
    lines = (Line(Compiled(planned, 1.0, memory), None),)
    return "\n".join(sentences(Plan(SftConfig(), asked, CHIPS[asked.chip], lines, 1, 1), 0.0))


@pytest.mark.parametrize(
    ("topology", "needed", "told"),
    [("h100:8", 59, False), ("h100:8", 60, True), ("h100:8", 76, False), ("v5p:4x4x4", 90, False)],
)
def test_a_gpu_that_jax_would_not_take_enough_of_is_named(
    topology: str, needed: float, told: bool
) -> None:
    assert ("XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" in said(topology, needed)) == told


def test_what_is_too_large_for_a_gpu_says_by_how_much() -> None:
    assert "update does not fit: 4.85 GiB more than the 75.15" in said("h100:1", 80)
