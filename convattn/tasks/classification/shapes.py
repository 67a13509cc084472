"""What the shape of most images means for a model's input."""

from __future__ import annotations

from convattn.data import Preprocess

_LONG = 0.72  # a photo of 4 by 3 keeps 0.75, one of 3 by 2 keeps 0.67
_SMALL = 4  # times as large is the input


def shape_notes(preprocess: Preprocess, size: tuple[int, int] | None) -> list[str]:
    """Return a sentence where the centre crop cuts most images, and where most are very small.

    Args:
        preprocess: of the model.
        size: width and height of a typical image; None where it is not known.
    """
    if size is None:
        return []
    (width, height), (_, rows, columns) = size, preprocess.input_size
    notes = []
    share = _share(width / columns, height / rows)
    if preprocess.crop_mode == "center" and share < _LONG:
        notes.append(
            f"most images are long: of a typical one, {width} x {height} pixels, evaluation keeps "
            f"the middle {share * preprocess.crop_pct**2:.0%}; crop_mode=squash (stretched to the "
            "input) or crop_mode=border (with borders) keep its whole length"
        )
    if _SMALL * max(width / columns, height / rows) <= 1:
        notes.append(
            f"most images are small: a typical one has {width} x {height} pixels and is enlarged "
            f"to {columns} x {rows}; a smaller img_size computes less"
        )
    return notes


def _share(width: float, height: float) -> float:
    """The share of an image that a crop of the input's shape keeps, sides in units of the input."""
    return min(width, height) / max(width, height)
