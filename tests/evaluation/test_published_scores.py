"""The published rows add up, but for a few that are known."""

from collections.abc import Mapping

import pytest

from rmr1_jax.evaluation.published_scores import (
    PUBLISHED,
    REWARDBENCH_ROWS,
    RM_BENCH_CORRECTED_ROWS,
    RM_BENCH_ROWS,
    RMB_ROWS,
)

# Totals that are not the mean of their parts.
ODD_AVERAGES = {"Internlm2-20b-reward", "Skywork-Reward-Llama-3.1-8B"}
ODD_REWARDBENCH = {"DeepSeek-PairRM-27B"}
ODD_RM_BENCH = {"RM-R1-Qwen-Instruct-14B"}
ODD_RMB = {"DeepSeek-GRM-27B-RFT", "JudgeLRM"}
# Table 1 and the benchmark's own table differ by 0.1 or 0.2.
ODD_TOTALS = {"Self-taught-evaluator-70B"}

Rows = Mapping[str, Mapping[str, float]]
# Parts and total are rounded to 0.1, so their means may be 0.1 apart.
ROUNDING = 0.1001


def that_do_not_add_up(rows: Rows, parts: str, total: str) -> set[str]:
    names = parts.split()
    return {
        model
        for model, row in rows.items()
        if abs(sum(row[name] for name in names) / len(names) - row[total]) > ROUNDING
    }


def test_an_average_is_the_mean_of_the_three_benchmarks() -> None:
    odd = set()
    for row in PUBLISHED:
        if row.rm_bench is None or row.average is None:
            assert row.rm_bench is None and row.average is None
        elif abs((row.rewardbench + row.rm_bench + row.rmb) / 3 - row.average) > 0.06:
            odd.add(row.name)
    assert odd == ODD_AVERAGES


@pytest.mark.parametrize(
    ("rows", "parts", "total", "odd"),
    [
        (REWARDBENCH_ROWS, "chat chat_hard safety reasoning", "overall", ODD_REWARDBENCH),
        (RM_BENCH_ROWS, "chat math code safety", "total", ODD_RM_BENCH),
        (RM_BENCH_ROWS, "hard normal easy", "total", ODD_RM_BENCH),
        (RM_BENCH_CORRECTED_ROWS, "chat math code safety", "total", set()),
        (RM_BENCH_CORRECTED_ROWS, "hard normal easy", "total", set()),
        (
            RMB_ROWS,
            "bon_helpfulness pairwise_helpfulness bon_harmlessness pairwise_harmlessness",
            "overall",
            ODD_RMB,
        ),
    ],
)
def test_a_total_is_the_mean_of_its_parts(
    rows: Rows, parts: str, total: str, odd: set[str]
) -> None:
    assert that_do_not_add_up(rows, parts, total) == odd


@pytest.mark.parametrize(
    ("rows", "column", "total"),
    [
        (REWARDBENCH_ROWS, "rewardbench", "overall"),
        (RM_BENCH_ROWS, "rm_bench", "total"),
        (RMB_ROWS, "rmb", "overall"),
    ],
)
def test_a_model_has_the_same_name_and_total_in_both_tables(
    rows: Rows, column: str, total: str
) -> None:
    for row in PUBLISHED:
        own = rows.get(row.name)
        if own is not None and row.name not in ODD_TOTALS:
            assert getattr(row, column) == own[total], row.name
    assert {row.name for row in PUBLISHED if row.kind == "rm-r1"} <= rows.keys()


def test_points_not_fractions() -> None:
    for rows in (REWARDBENCH_ROWS, RM_BENCH_ROWS, RM_BENCH_CORRECTED_ROWS, RMB_ROWS):
        assert all(30 < value < 100 for row in rows.values() for value in row.values())


def test_the_second_file_makes_hard_harder() -> None:
    """Where it is not read, an easy cell stands in for a hard one."""
    for name, corrected in RM_BENCH_CORRECTED_ROWS.items():
        published = RM_BENCH_ROWS[name]
        assert corrected["hard"] < published["hard"] - 3
        assert corrected["easy"] > published["easy"] + 1
        assert corrected["normal"] == pytest.approx(published["normal"], abs=0.06)
