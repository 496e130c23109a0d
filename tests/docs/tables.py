"""The tables of a page of docs/, for tests of what they state."""

import re
from pathlib import Path

Row = dict[str, str]


def rows(page: Path, *columns: str) -> list[Row]:
    """Of all tables with these columns, in this order; an empty first cell is that of the row
    before, as a reader takes it."""
    found: list[Row] = []
    for row in (row for table in _tables(page) for row in table if (*row,) == columns):
        row[columns[0]] = row[columns[0]] or found[-1][columns[0]]
        found.append(row)
    return found


def number(cell: str) -> float:
    """The first in a cell: `2,007 steps of 6 s` -> 2007."""
    found = re.search(r"\d[\d,]*(?:\.\d+)?", cell)
    assert found, f"no number in {cell!r}"
    return float(found[0].replace(",", ""))


def _tables(page: Path) -> list[list[Row]]:
    blocks = re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE)
    found = []
    for block in blocks:
        head, _, *rows = (
            [cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()
        )
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found
