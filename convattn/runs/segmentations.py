"""The class of each pixel of one image: shares, JSON, a PNG, a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from convattn.names import first_of, shown
from convattn.runs.colours import backgrounds, class_colour
from convattn.runs.drawing import (
    LegendEntry,
    draw_classes,
    enlarged,
    palette_image,
    resized_mask,
    with_legend,
)
from convattn.runs.predictions import Prediction

_MOST_IN_CELL = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationPrediction(Prediction):
    """The class of each pixel of one image.

    `to_dict` has the key "classes": a list of {"name", "label", "share"} of the classes in the
    image, the largest share of the pixels first. `to_png` has the pixels.

    Args:
        class_names: in the order of the class numbers.
        mask: class numbers uint8 (H, W) at the size of the original image.
    """

    task = "segmentation"
    heading = "shares of pixels"

    class_names: tuple[str, ...] = field(default=(), repr=False)
    mask: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint8), repr=False)

    @property
    def classes(self) -> dict[str, float]:
        """The share of the pixels of each class in the image, the largest first."""
        self.check()
        return {self.class_names[label]: share for label, share in self._shares()}

    @property
    def shown_labels(self) -> Sequence[int]:
        """The class numbers whose colours are in the drawing."""
        return [label for label, _ in self._shares()]

    def _shares(self) -> list[tuple[int, float]]:
        counts = np.bincount(self.mask.ravel(), minlength=len(self.class_names))
        counts = counts[: len(self.class_names)]
        labels = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
        return [(label, counts[label].item() / self.mask.size) for label in labels]

    def _values(self) -> dict[str, Any]:
        return {
            "classes": [
                {"name": self.class_names[label], "label": label, "share": share}
                for label, share in self._shares()
            ]
        }

    def _cells(self) -> Sequence[str]:
        texts = [f"{shown(name)} {share:.1%}" for name, share in self.classes.items()]
        return [first_of(texts, _MOST_IN_CELL)]

    def _overlay(self, image: Image.Image) -> Image.Image:
        return draw_classes(image, resized_mask(self.mask, image.size), self.class_names)

    def _drawn(self, image: Image.Image) -> Image.Image:
        drawn = self._overlay(enlarged(image))
        return with_legend(drawn, class_legend(self.mask, self.class_names))

    def _masks(self) -> Image.Image:
        """Return a palette image; the index is the class number."""
        return palette_image(self.mask)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SegmentationPrediction):
            return NotImplemented
        mine, others = ((p.path, p.size, p.error, p.class_names) for p in (self, other))
        return mine == others and np.array_equal(self.mask, other.mask)

    def __hash__(self) -> int:
        return hash((self.path, self.size, self.error))


def class_legend(mask: np.ndarray, class_names: Sequence[str]) -> list[LegendEntry]:
    """Return an entry per coloured class of the mask (H, W), in the order of the class numbers."""
    counts = np.bincount(mask.ravel(), minlength=len(class_names))
    clear = backgrounds(class_names)
    return [
        LegendEntry(class_colour(label), name, f"{counts[label] / mask.size:.0%}")
        for label, name in enumerate(class_names)
        if counts[label] and label not in clear
    ]
