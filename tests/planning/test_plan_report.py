"""What a plan says in tables and sentences."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from rmr1_jax.config import SftConfig
from rmr1_jax.planning.analysis import Analysis, DecodeStep, TimeBounds, Transfers
from rmr1_jax.planning.chips import CHIPS, GIB, parse_topology
from rmr1_jax.planning.compiled import Compiled, Memory, Planned, TooBig
from rmr1_jax.planning.plan import Line, Plan
from rmr1_jax.planning.plan_report import sentences, tables, to_json


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


CUT = "\N{HORIZONTAL ELLIPSIS}"
BOUNDS = TimeBounds(
    compute=2.0,
    memory=1.5,
    communication=0.5,
    flops=150e12,
    read=40e9,
    written=2.5e9,
)
TRANSFERS = {
    "all-gather": Transfers(count=3, bytes=7e9, in_decode_loop=0.0, between_slices=0.0),
    "all-reduce": Transfers(count=2, bytes=2e9, in_decode_loop=34e6, between_slices=1.25e9),
}


def a_plan(topology: str) -> Plan:
    """Of a rollout that takes 4 GiB."""
    asked = parse_topology(topology)
    planned = Planned(
        "rollout",
        lambda: None,
        runs=1,
        useful_flops=100e12 * asked.chips,
        tokens=8000.0 * asked.chips,
    )
    memory = Memory(arguments=GIB, temporaries=GIB // 2, results=GIB // 4, resident=9 * GIB // 4)
    decode = DecodeStep(0.0037, 0.0052, 5.5e9, 5e9, 0)
    line = Line(Compiled(planned, 97.0, memory), Analysis(BOUNDS, TRANSFERS, decode))
    return Plan(SftConfig(), asked, CHIPS[asked.chip], (line,), 10, 1)


def printed(plan: Plan) -> list[str]:
    """Lines on a terminal of 120 columns."""
    file = StringIO()
    for table in tables(plan):
        Console(file=file, width=120).print(table, highlight=False)
    return file.getvalue().splitlines()


def rows(plan: Plan) -> list[dict[str, str]]:
    """Each table's only row, by column; columns are told apart by two spaces."""
    lines = printed(plan)
    cut = [[cell for cell in line.strip().split("  ") if cell.strip()] for line in lines]
    heads = [number for number, cells in enumerate(cut) if cells[0] == "program"]
    return [
        {name.strip(): cell.strip() for name, cell in zip(cut[head], cut[head + 1], strict=True)}
        for head in heads
    ]


def test_memory_work_and_transfers_of_a_program_are_in_tables() -> None:
    memory, work, sent = rows(a_plan("v5e:2x2"))
    assert memory == {
        "program": "rollout",
        "compiled": "97 s",
        "arguments": "1.00",
        "temporaries": "0.50",
        "results": "0.25",
        "beside": "2.25",
        "peak": "4.00",
    }
    assert work == {
        "program": "rollout",
        "runs a step": "1",
        "seconds": "2.00 to 4.00",
        "TFLOP": "150.00",
        "x useful": "1.50",
        "GB of HBM": "42.50",
        "MFU": "13% to 25%",  # 100 TFLOP in 4 or 2 s, of 197 a second
        "tokens/s/chip": "2,000 to 4,000",
    }
    assert sent == {"program": "rollout", "all-gather": "7.00", "all-reduce": "2.00"}


@pytest.mark.parametrize(
    ("topology", "network"), [("v5e:2x2*2", "between slices"), ("h100:16", "between hosts")]
)
def test_what_takes_the_slow_network_is_told_apart(topology: str, network: str) -> None:
    sent = rows(a_plan(topology))[2]
    assert sent == {
        "program": "rollout",
        "all-gather": "7.00",
        "all-reduce": "2.00",
        network: "1.25",
    }


def test_tables_of_long_names_and_all_kinds_fit_120_columns() -> None:
    plan = a_plan("v5p:4x4x4*2")
    (line,) = plan.lines
    assert line.analysis is not None
    planned = replace(line.compiled.planned, name="reference log-probabilities")
    kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    most = Transfers(count=1, bytes=123_456e9, in_decode_loop=0.0, between_slices=123_456e9)
    long = Line(
        replace(line.compiled, planned=planned, seconds=1234.0),
        replace(
            line.analysis,
            bounds=replace(BOUNDS, compute=12_345.0, flops=1e17, read=1e14),
            transfers=dict.fromkeys(kinds, most),
        ),
    )
    lines = printed(replace(plan, lines=(long,)))
    assert len(lines) == len(printed(plan)) and CUT not in "".join(lines)


def test_a_decode_step_says_what_it_reads_copies_and_sends() -> None:
    (said,) = (line for line in sentences(a_plan("v5e:2x2"), 0.0) if "decode" in line)
    assert "3.70 to 5.20 ms, 1.10 x the bytes" in said
    assert said.endswith("0 copies of a cache; sent to other devices: all-reduce 34.00 MB")


def test_times_are_said_to_be_bounds_that_nobody_measured() -> None:
    assert "never measured" in sentences(a_plan("v5e:2x2"), 0.0)[-1]


def test_a_plan_that_may_be_misread_has_no_time_and_says_why() -> None:
    plan = a_plan("v5e:2x2")
    (line,) = plan.lines
    assert line.analysis is not None
    doubtful = replace(line.analysis, doubts=("12 lines of its text are no instruction",))
    for unsure in (
        replace(plan, lines=(replace(line, analysis=doubtful),)),
        replace(plan, misread="a known product of 10 FLOPs was counted as 0"),
    ):
        (work,) = (shown for shown in printed(unsure) if "150.00" in shown)
        assert "2.00 to 4.00" not in work and "%" not in work
        (said,) = sentences(unsure, 0.0)
        assert said.startswith("no times") and unsure.doubts[0] in said
        assert to_json(unsure)["step_seconds"] is None


def test_what_the_compiler_refused_is_in_the_table_of_memory_alone() -> None:
    (line,) = a_plan("v5e:2x2").lines
    refused = replace(line.compiled, memory=None, too_big=TooBig(20 * GIB, 15 * GIB))
    plan = replace(a_plan("v5e:2x2"), lines=(Line(refused, None),))
    lines = [line.split() for line in printed(plan) if line.startswith("rollout")]
    assert lines == [["rollout", "97", "s", "20.00"]]
