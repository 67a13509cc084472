"""Read CSV files, and write tables in Markdown."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path


def read_rows(table: Traversable | Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file by the names of the columns."""
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table with a head and lines of cells."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cell.strip() for cell in row)} |" for row in rows)
