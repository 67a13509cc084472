"""Boxes, masks, class maps and legends drawn on PIL images, at any size of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from convattn.names import shown
from convattn.runs.colours import Colour, backgrounds, class_colour, ink_on
from convattn.runs.labels import font_for, shortened

Box = tuple[float, float, float, float]

IGNORED = 255  # class number of mask pixels that have no class
_READABLE = 320  # smaller pictures are enlarged so that the longer side has this many pixels
_FILL, _CLASS_FILL = 0.45, 0.55  # opacity of the masks of objects and of classes
_SHADE = 0.6  # opacity of the black over ignored pixels
_PAPER, _INK, _EDGE = (255, 255, 255), (27, 35, 48), (0, 0, 0)
_LARGEST_LEGEND = 40  # entries; the others are counted
_LONGEST_NAME = 28  # letters of a name in a label or a legend


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """An object to draw.

    Args:
        number: class number, which chooses the colour.
        text: the label at the box; "" for none.
        box: left, top, right and bottom in pixels of the image.
        mask: Boolean (H, W) of the size of the image, or None.
        dashed: whether the box is drawn with a dashed line.
    """

    number: int
    text: str
    box: Box
    mask: np.ndarray | None = field(default=None, compare=False, repr=False)
    dashed: bool = False


class LegendEntry(NamedTuple):
    """A colour, the name that it stands for, and a number or share that is never cut."""

    colour: Colour
    name: str
    amount: str = ""

    @property
    def text(self) -> str:
        """The name, shortened if it is long, and the amount."""
        return f"{short_name(self.name)} {self.amount}".rstrip()


def short_name(name: str) -> str:
    """Return a name that is safe to print, with at most 28 letters."""
    name = shown(name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def enlarged(image: Image.Image) -> Image.Image:
    """Return an RGB copy; a small image is enlarged by a whole factor, so that text is readable."""
    factor = max(1, round(_READABLE / max(image.size)))
    image = image.convert("RGB")
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST) if factor > 1 else image.copy()


def draw_objects(image: Image.Image, objects: Sequence[Drawn]) -> Image.Image:
    """Return a copy of an RGB image with boxes, labels, and translucent masks with outlines.

    Args:
        image: in mode "RGB".
        objects: drawn in this order: later ones cover earlier ones.
    """
    pixels = np.array(image)
    width = _line(image.size)
    for item in objects:
        if item.mask is not None:
            _blend_mask(pixels, item.mask, class_colour(item.number), width)
    drawn = Image.fromarray(pixels)
    pen = ImageDraw.Draw(drawn)
    for item in objects:
        _draw_box(pen, item, width)
    taken: list[Box] = []
    for item in reversed(objects):  # the labels of the objects in front have the best places
        _draw_text(pen, item, drawn.size, taken)
    return drawn


def draw_classes(
    image: Image.Image, mask: np.ndarray, class_names: Sequence[str] = ()
) -> Image.Image:
    """Return a copy of an RGB image with the colour of each pixel's class and lines between them.

    Pixels without a class, `IGNORED`, are darkened; those of a class named "background" stay.

    Args:
        image: in mode "RGB".
        mask: class numbers uint8 (H, W) of the size of the image.
        class_names: in the order of the class numbers.
    """
    table = np.array([class_colour(number) for number in range(IGNORED)] + [(0, 0, 0)])
    opacity = np.full(IGNORED + 1, _CLASS_FILL)
    opacity[IGNORED] = _SHADE
    opacity[backgrounds(class_names)] = 0
    pixels = np.array(image)
    for row in range(0, len(pixels), 256):  # in parts: a large image needs little memory
        part = mask[row : row + 256]
        share = opacity[part][..., None]
        pixels[row : row + 256] = pixels[row : row + 256] * (1 - share) + table[part] * share
    edges = _changes(mask, _line(image.size) // 2)
    pixels[edges] = np.array(_PAPER)
    return Image.fromarray(pixels)


def with_legend(
    image: Image.Image, entries: Sequence[LegendEntry], size: float | None = None
) -> Image.Image:
    """Return the image above a strip of colours and names; without entries, the image.

    Args:
        image: in mode "RGB".
        entries: in the order of the strip.
        size: of the font in pixels; by default it suits the size of the image.
    """
    if not entries:
        return image
    size = size or _text_size(image.size)
    if len(entries) > _LARGEST_LEGEND:
        more = f"and {len(entries) - _LARGEST_LEGEND + 1} more"
        entries = [*entries[: _LARGEST_LEGEND - 1], LegendEntry(_PAPER, more)]
    fonts = [font_for(entry.text, size) for entry in entries]
    lengths = [font.getlength(entry.text) for font, entry in zip(fonts, entries, strict=True)]
    swatch, gap = size, size / 2
    column = swatch + 3 * gap + max(lengths)
    width = max(image.width, round(column + gap))
    columns = max(1, int((width - gap) / column))
    rows = -(-len(entries) // columns)
    line = round(1.5 * size)
    picture = Image.new("RGB", (width, image.height + rows * line + round(size)), _PAPER)
    picture.paste(image, (0, 0))
    pen = ImageDraw.Draw(picture)
    for place, (entry, font) in enumerate(zip(entries, fonts, strict=True)):
        x = gap + place % columns * column
        y = image.height + size / 2 + place // columns * line + line / 2
        if entry.colour != _PAPER:
            box = (x, y - swatch / 2, x + swatch, y + swatch / 2)
            pen.rectangle(box, fill=entry.colour, outline=_INK)
        pen.text((x + swatch + gap, y), entry.text, fill=_INK, font=font, anchor="lm")
    return picture


def side_by_side(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Return pictures of one height in a row, each under its title.

    Args:
        pictures: titles and RGB pictures; the first one gives the height.
    """
    height = pictures[0][1].height
    scaled = [_of_height(picture, height) for _, picture in pictures]
    size = _text_size(scaled[0].size)
    gap, bar = round(size / 2), round(1.7 * size)
    width = sum(picture.width for picture in scaled) + gap * (len(scaled) - 1)
    row = Image.new("RGB", (width, height + bar), _PAPER)
    pen = ImageDraw.Draw(row)
    x = 0
    for (title, _), picture in zip(pictures, scaled, strict=True):
        font = font_for(shown(title), size)
        text = shortened(shown(title), font, picture.width)
        pen.text((x, bar / 2), text, fill=_INK, font=font, anchor="lm")
        row.paste(picture, (x, bar))
        x += picture.width + gap
    return row


def palette_image(mask: np.ndarray) -> Image.Image:
    """Return class numbers uint8 (H, W) as a palette image; the index is the class number."""
    picture = Image.fromarray(mask)
    picture.putpalette(bytes(c for n in range(IGNORED) for c in class_colour(n)) + bytes(3))
    return picture


def resized_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask (H, W) at another width and height, without values between two classes."""
    if mask.shape == size[::-1]:
        return mask
    picture = Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(picture).astype(mask.dtype)


def _line(size: tuple[int, int]) -> int:
    return max(2, round(min(size) / 250))


def _text_size(size: tuple[int, int]) -> float:
    return float(min(64, max(12, round(max(size) / 50))))


def _of_height(picture: Image.Image, height: int) -> Image.Image:
    if picture.height == height:
        return picture
    width = max(1, round(picture.width * height / picture.height))
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _blend_mask(pixels: np.ndarray, mask: np.ndarray, colour: Colour, width: int) -> None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inside, area = mask[part], pixels[part]
    area[inside] = area[inside] * (1 - _FILL) + np.array(colour) * _FILL
    padded = np.pad(inside, width)
    area[inside & _changes(padded, width)[width:-width, width:-width]] = colour


def _changes(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels with another value within ``width`` pixels above, below or beside them."""
    found = np.zeros(mask.shape, bool)
    for step in range(1, width + 1):
        down = mask[step:] != mask[:-step]
        right = mask[:, step:] != mask[:, :-step]
        found[step:] |= down
        found[:-step] |= down
        found[:, step:] |= right
        found[:, :-step] |= right
    return found


def _draw_box(pen: ImageDraw.ImageDraw, item: Drawn, width: int) -> None:
    left, top, right, bottom = item.box
    colour = class_colour(item.number)
    if item.dashed:
        _draw_dashes(pen, item.box, colour, width)
        return
    outer = (left - 1, top - 1, max(left, right) + 1, max(top, bottom) + 1)
    pen.rectangle(outer, outline=_EDGE, width=width + 2)
    pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=width)


def _draw_dashes(pen: ImageDraw.ImageDraw, box: Box, colour: Colour, width: int) -> None:
    left, top, right, bottom = box
    dash = 4 * width + 2
    lines = []
    for start in np.arange(left, right, 2 * dash):
        end = min(start + dash, right)
        lines += [(start, top, end, top), (start, bottom, end, bottom)]
    for start in np.arange(top, bottom, 2 * dash):
        end = min(start + dash, bottom)
        lines += [(left, start, left, end), (right, start, right, end)]
    for fill, thickness in ((_EDGE, width + 2), (colour, width)):
        for line in lines:
            pen.line(line, fill=fill, width=thickness)


def _draw_text(
    pen: ImageDraw.ImageDraw, item: Drawn, size: tuple[int, int], taken: list[Box]
) -> None:
    """Write the label above the box, inside it or below it, where no other label stands."""
    if not item.text:
        return
    font = font_for(shown(item.text), _text_size(size))
    text = shortened(shown(item.text), font, size[0] - 4)
    if not text:
        return
    width, height = font.getlength(text) + 4, 1.3 * font.size
    left, top, _, bottom = item.box
    x = min(max(0.0, left), size[0] - width)
    places = [
        (x, min(max(0.0, y), max(0.0, size[1] - height))) for y in (top - height, top, bottom)
    ]
    boxes = [(x, y, x + width, y + height) for x, y in places]
    free = [box for box in boxes if not any(_overlap(box, other) for other in taken)]
    chosen = (free or boxes)[0]
    taken.append(chosen)
    colour = class_colour(item.number)
    pen.rectangle(chosen, fill=colour)
    middle = (chosen[0] + 2, (chosen[1] + chosen[3]) / 2)
    pen.text(middle, text, fill=ink_on(colour), font=font, anchor="lm")


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
