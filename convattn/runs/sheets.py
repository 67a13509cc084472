"""Contact sheets: pages of pictures in a grid, with a caption under each and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from convattn.names import shown
from convattn.runs.drawing import LegendEntry, with_legend
from convattn.runs.labels import font_for, shortened

COLUMNS, ROWS = 4, 4
SIDE = 384  # pixels of the longer side of a picture
_GAP, _TEXT, _LINE, _LEGEND = 12, 14.0, 18, 18.0
_CAPTION_LINES = 2
_PAPER, _INK, _GREY = (255, 255, 255), (27, 35, 48), (225, 228, 234)


class Tile(NamedTuple):
    """A picture of at most 384 pixels a side, and the lines under it."""

    picture: Image.Image
    caption: Sequence[str]


def fitted(size: tuple[int, int]) -> tuple[int, int]:
    """Return the width and height of an image as it fits a tile, enlarged or made smaller."""
    scale = SIDE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def blank(reason: str) -> Image.Image:
    """Return a grey picture with a text, in place of an image that cannot be read."""
    picture = Image.new("RGB", (SIDE, SIDE // 2), _GREY)
    pen = ImageDraw.Draw(picture)
    words = shown(reason).split()
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font_for(longer, _TEXT).getlength(longer) > SIDE - 2 * _GAP:
            lines.append(word)
        else:
            lines[-1] = longer
    for number, line in enumerate(lines):
        font = font_for(line, _TEXT)
        place = (_GAP, _GAP + number * _LINE)
        pen.text(place, shortened(line, font, SIDE - 2 * _GAP), fill=_INK, font=font)
    return picture


def contact_sheet(tiles: Sequence[Tile], legend: Sequence[LegendEntry]) -> Image.Image:
    """Return a page of at most 16 pictures, four in a row, with a legend below."""
    columns = min(COLUMNS, len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    under = _CAPTION_LINES * _LINE + _GAP
    heights = [max(tile.picture.height for tile in row) + under for row in rows]
    size = (_GAP + columns * (SIDE + _GAP), _GAP + sum(heights))
    page = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(page)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = _GAP + column * (SIDE + _GAP)
            page.paste(tile.picture, (left, top))
            for number, line in enumerate(tile.caption[:_CAPTION_LINES]):
                font = font_for(shown(line), _TEXT)
                text = shortened(shown(line), font, SIDE)
                place = (left, top + tile.picture.height + 3 + number * _LINE)
                pen.text(place, text, fill=_INK, font=font)
        top += height
    return with_legend(page, legend, _LEGEND)
