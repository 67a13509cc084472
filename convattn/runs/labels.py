"""Labels on images, readable on any background and at any size of the image."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import cast

from PIL import Image, ImageDraw, ImageFont

from convattn.names import shown

_INK, _BAR, _ACCENT = (255, 255, 255), (20, 24, 32), (88, 166, 255)
_OPACITY = 0.78
_SMALLEST, _LARGEST = 8, 64  # font sizes in pixels
_PART = 18  # the font size is this part of the shorter side of the image
_MISSING = "\U0010ffff"  # no font has a glyph for it
_FONTS = (  # for characters that Pillow's font lacks: Latin, Greek, Cyrillic, then Asian ones
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc",
    "Arial Unicode.ttf", "wqy-zenhei.ttc", "unifont.ttf",
)  # fmt: skip


def draw_label(image: Image.Image, label: str, probability: float | None) -> Image.Image:
    """Return a copy of an RGB image with a bar at the top: a class and its probability.

    A line below the bar has a length in proportion to the probability. A name that is too long is
    cut; on an image of few pixels only the line is drawn.

    Args:
        image: in mode "RGB".
        label: name of the class.
        probability: in 0..1; None for the true class, which has no probability and no line.
    """
    drawn = image.copy()
    width, height = drawn.size
    label = shown(label)
    font = font_for(label, _font_size(width, height))
    margin = max(1, round(font.size / 3))
    ascent, descent = font.getmetrics()
    line = max(1, round(font.size / 8))
    bar = ascent + descent + margin
    percent = "" if probability is None else f"{probability:.0%}"
    text = _fitting(label, percent, font, width - 2 * margin)
    if text and bar + line <= height / 2:
        box = (0, 0, width, bar)
        shade = Image.new("RGB", (width, bar), _BAR)
        drawn.paste(Image.blend(drawn.crop(box), shade, _OPACITY), box)
        pen = ImageDraw.Draw(drawn)
        top = margin / 2
        pen.text((margin, top), text, fill=_INK, font=font)
        pen.text((width - margin - font.getlength(percent), top), percent, fill=_INK, font=font)
    else:
        bar, line = 0, max(1, height // 10)
    if probability is None:
        return drawn
    drawn.paste(_BAR, (0, bar, width, bar + line))
    drawn.paste(_ACCENT, (0, bar, max(1, round(width * probability)), bar + line))
    return drawn


@lru_cache(maxsize=1024)
def font_for(text: str, size: float) -> ImageFont.FreeTypeFont:
    """Return Pillow's font, or a font that has more characters of the text."""
    own = cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))
    if not _lacking(own, text):
        return own
    others = [ImageFont.truetype(path, size) for path in map(_find_font, _FONTS) if path]
    return min([own, *others], key=lambda font: _lacking(font, text))


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return the text, cut so that it fits a width in pixels; "" if nothing fits."""
    kept, found = text, text
    while found and font.getlength(found) > width:
        kept = kept[:-1]
        found = f"{kept}…" if kept else ""
    return found


@lru_cache
def _find_font(name: str) -> str | None:
    """Return the path of a font of the system or of matplotlib, None if neither has it."""
    for place in (name, *_matplotlib_fonts(name)):
        with contextlib.suppress(OSError):
            return str(ImageFont.truetype(place).path)
    return None


def _matplotlib_fonts(name: str) -> Iterator[str]:
    found = find_spec("matplotlib")
    for folder in (found.submodule_search_locations if found else None) or ():
        yield os.path.join(folder, "mpl-data", "fonts", "ttf", name)


def _lacking(font: ImageFont.FreeTypeFont, text: str) -> int:
    """Return how many characters of a text are drawn as the box for a missing one."""
    box = bytes(font.getmask(_MISSING))
    return sum(bytes(font.getmask(char)) == box for char in set(text) if not char.isspace())


def _font_size(width: int, height: int) -> float:
    return float(min(_LARGEST, max(_SMALLEST, min(width, height) / _PART)))


def _fitting(label: str, percent: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return the label, cut so that it and the probability fit; "" if nothing fits."""
    return shortened(label, font, width - font.getlength(percent) - font.size / 2)
