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
        kept = share * preprocess.crop_pct**2
        notes.append(
            f"most images are long: evaluation sees only the middle {kept:.0%} of a typical one "
            f"({width} x {height} pixels); crop_mode=squash stretches all of it to the input, "
            "crop_mode=border puts borders around it"
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
