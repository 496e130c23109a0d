"""The report of a distillation, as a table."""

from rich.table import Table

from rmr1_jax.synthesis.two_pass import Report


def report_table(report: Report) -> Table:
    """Pairs first, then what each teacher was asked and what it cost."""
    table = Table(title="Traces", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("pairs", report.pairs),
        ("accepted in pass 1", report.accepted[1]),
        *_indented("pass 1", report.rejected_in_pass_1),
        ("accepted in pass 2", report.accepted[2]),
        *_indented("refused", report.rejected),
        *_indented("no reply", report.failed),
        ("still to be asked", report.open),
    ):
        table.add_row(name, f"{value:,}")
    for number, spend in sorted(report.spend.items()):
        if not spend.requests:
            continue
        table.add_section()
        table.add_row(f"teacher {number}", report.teachers[number])
        for name, value in vars(spend).items():
            if value or name in ("requests", "replies"):
                table.add_row(f"  {name.replace('_', ' ')}", f"{value:,}")
    return table


def _indented(what: str, counts: dict[str, int]) -> list[tuple[str, int]]:
    return [
        (f"  {what}: {reason}", count)
        for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
