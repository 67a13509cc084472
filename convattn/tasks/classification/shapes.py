"""Notes on images whose shape or size does not suit the input of a model."""

from __future__ import annotations

from convattn.data import Preprocess

_LONG = 0.72  # share of the image in the crop: 0.75 of a photo of 4 by 3, 0.67 of 3 by 2
_SMALL = 4  # the input is so many times as large as a small image


def shape_notes(preprocess: Preprocess, size: tuple[int, int] | None) -> list[str]:
    """Return a sentence where the centre crop cuts most images, and where most are very small.

    Args:
        preprocess: the input that the model expects.
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
            f"most images are long: evaluation uses only the middle {kept:.0%} of a typical one "
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
    """Return the share of an image in the centre crop; sides are in units of the input's."""
    return min(width, height) / max(width, height)
