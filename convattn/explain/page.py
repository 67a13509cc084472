"""The content of a report page as plain data: sections of texts, tables, charts and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from PIL import Image
from torch import Tensor, nn

from convattn.runs.results import Run

Cell = str | float | None
# A longer table of classes shows the worst ones; the others are folded.
FULL_TABLE = 30
_WORST = 15
_MAX_ROWS = 1000


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    block: ClassVar[str] = "text"

    text: str


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    block: ClassVar[str] = "heading"

    text: str


@dataclass(frozen=True)
class TableColumn:
    """A column of a table.

    Args:
        title: the heading.
        kind: "name" (a row's heading), "text", "count" (a whole number), "percent", or "bar" (a
            share from 0 to 1 as a bar and in per cent).
    """

    title: str
    kind: Literal["name", "text", "count", "percent", "bar"] = "text"


@dataclass(frozen=True)
class Table:
    """A table; None and NaN are empty cells."""

    block: ClassVar[str] = "table"

    columns: Sequence[TableColumn]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing in SVG, with a text for those who cannot see it, and a title."""

    block: ClassVar[str] = "chart"

    alt: str
    svg: str
    css: str = ""
    title: str = ""


@dataclass(frozen=True)
class Charts:
    """Charts side by side."""

    block: ClassVar[str] = "charts"

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Line:
    """A line under a picture: a label and a value.

    Args:
        label: such as "predicted".
        value: such as the name of a class.
        is_wrong: whether the value is a wrong prediction.
        rest: what follows the value.
    """

    label: str
    value: str
    is_wrong: bool = False
    rest: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture with lines under it.

    Args:
        alt: a text for those who cannot see it.
        uri: the picture as a data URI; None if the image cannot be read.
        name: path of the image, or its number.
        lines: the lines under it.
    """

    alt: str
    uri: str | None
    name: str
    lines: Sequence[Line] = ()


@dataclass(frozen=True)
class Gallery:
    """Pictures in a grid; wide ones are a truth and a prediction side by side."""

    block: ClassVar[str] = "gallery"

    pictures: Sequence[Picture]
    is_wide: bool = False


@dataclass(frozen=True)
class Legend:
    """Colours of classes, as CSS colours, and their names."""

    block: ClassVar[str] = "legend"

    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Grid:
    """A table of pictures: a heading with further lines, and a row of pictures.

    Args:
        rows: heading, further text, a name in the code, and pictures of each row.
    """

    block: ClassVar[str] = "grid"

    rows: Sequence[tuple[str, str, str, Sequence[Picture]]]


@dataclass(frozen=True)
class Folded:
    """Blocks that a click opens."""

    block: ClassVar[str] = "folded"

    summary: str
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Beside:
    """Two groups of blocks side by side, where the page is wide enough."""

    block: ClassVar[str] = "beside"

    left: Sequence[Any]
    right: Sequence[Any]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        key: its id.
        title: the heading.
        blocks: its content.
    """

    key: str
    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The images of a run's validation, and its model.

    Args:
        image: returns an image by its number.
        number: returns the number that an image has now, from its number in the evaluation and its
            path; raises an error if the image is gone.
        target: returns the target of an image by its number, in pixels of the image.
        predict: returns the predictions for images by their numbers.
        count: number of images.
        model: the trained network; it runs in evaluation mode and is left as it was.
        preprocess: turns an image into the input of the network (C, H, W), as in evaluation.
    """

    image: Callable[[int], Image.Image]
    number: Callable[[int, str], int] = lambda index, path: index
    target: Callable[[int], Any] | None = None
    predict: Callable[[Sequence[int]], Sequence[Any]] | None = None
    count: int = 0
    model: nn.Module | None = None
    preprocess: Callable[[Image.Image], Tensor] | None = None


# What a section is called in a message, and the function that makes it; None leaves it out.
Part = tuple[str, Callable[[Run, Pictures | None], Section | None]]


def class_tables(
    columns: Sequence[TableColumn], rows: Sequence[Sequence[Cell]], by: int, caption: str
) -> list[Any]:
    """Return a table with a row per class; for more than 30 classes, the worst, the others folded.

    Args:
        columns: the columns of the table.
        rows: a row per class.
        by: the column whose smallest values are the worst.
        caption: what the table shows.
    """
    if len(rows) <= FULL_TABLE:
        return [Table(columns, rows, caption)]
    known = [row for row in rows if not _is_empty(row[by])]
    worst = sorted(known, key=lambda row: row[by] or 0.0)[:_WORST]
    title = f"The {len(worst)} hardest of {len(rows)} classes"
    blocks: list[Any] = [Table(columns, worst, title)]
    if len(rows) <= _MAX_ROWS:
        return [*blocks, Folded(f"All {len(rows)} classes", [Table(columns, rows, "All classes")])]
    return [*blocks, Text(f"The file evaluation.json lists all {len(rows):,} classes.")]


def percent(share: float, digits: int = 1) -> str:
    """Return a share from 0 to 1 in per cent."""
    return f"{share:.{digits}%}"


def number(value: float) -> str:
    """Return a number without digits after the point."""
    return f"{value:,.0f}"


def cell_text(value: Cell, kind: str) -> str:
    """Return a cell of a table as text."""
    if _is_empty(value):
        return "–"  # noqa: RUF001  # a dash, as in tables
    if isinstance(value, str):
        return value
    return number(value or 0.0) if kind == "count" else percent(value or 0.0)


def _is_empty(value: Cell) -> bool:
    return value in (None, "") or (isinstance(value, float) and math.isnan(value))
