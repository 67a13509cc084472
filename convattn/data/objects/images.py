"""Images with objects: their boxes, classes and masks."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from convattn.data.images import load_sized
from convattn.data.objects.index import POLYGONS, RUN_LENGTHS, ObjectIndex
from convattn.data.source import ImageSet
from convattn.data.value_range import ValueRange


class ObjectImages(ImageSet):
    """Image files with objects.

    Args:
        index: the images and their objects.
        rows: which images of the index.
        folder: the folder that the names of the images start from.
        numbers: for each class of the index, its number in the data set.
        masks: whether targets have masks; objects without one are then left out.
        value_range: see `load_image`.
    """

    def __init__(
        self,
        index: ObjectIndex,
        rows: np.ndarray,
        folder: str,
        numbers: np.ndarray,
        *,
        masks: bool = False,
        value_range: ValueRange | None = None,
    ) -> None:
        self._index = index
        self._rows = np.asarray(rows, dtype=np.int64)
        self._folder = folder
        self._numbers = numbers
        self._masks = masks
        self._value_range = value_range

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, index: int) -> Image.Image:
        """Read the file; an image has the size that its annotations say, or it is broken."""
        size = self._index.size(int(self._rows[index]))
        return load_sized(self.path(index), size, self._value_range)

    def target(self, index: int) -> dict[str, Any]:
        """Return the objects of an image.

        Returns:
            ``boxes`` (N, 4) in pixels, `BoundingBoxes` XYXY; ``labels`` (N,), class numbers from 0;
            ``crowd`` (N,), objects that count neither as found nor as missed; ``area`` (N,) in
            pixels; ``masks`` (N, H, W) of zeros and ones, if the data set was opened with masks;
            ``image_id``, a number.
        """
        row = int(self._rows[index])
        width, height = self._index.size(row)
        chosen = self._chosen(row)
        column = self._index.column
        boxes = column("boxes").reshape(-1, 4)[chosen]
        area = column("area")[chosen]
        sides = boxes[:, 2:] - boxes[:, :2]
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(boxes), format="XYXY", canvas_size=(height, width)
            ),
            "labels": torch.from_numpy(self._numbers[column("label")[chosen]]),
            "crowd": torch.from_numpy(column("crowd")[chosen].astype(bool)),
        }
        own = sides[:, 0] * sides[:, 1]
        if self._masks:
            masks = self._index.masks(chosen.tolist(), (width, height))
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
            own = masks.sum((1, 2), dtype=np.float32)
        target["area"] = torch.from_numpy(np.where(np.isnan(area), own, area))
        target["image_id"] = int(column("image_id")[row])
        return target

    def path(self, index: int) -> str:
        """Return the file's path."""
        return os.path.join(self._folder, self._index.name(int(self._rows[index])))

    def scaled(self, value_range: ValueRange | None) -> ObjectImages:
        """Return the same images with another ``value_range``."""
        return ObjectImages(
            self._index,
            self._rows,
            self._folder,
            self._numbers,
            masks=self._masks,
            value_range=value_range,
        )

    def _chosen(self, row: int) -> np.ndarray:
        """Return the numbers of the objects of an image."""
        place = self._index.objects(row)
        numbers = np.arange(place.start, place.stop)
        if not self._masks:
            return numbers
        kinds = self._index.column("mask_kind")[place]
        return numbers[(kinds == POLYGONS) | (kinds == RUN_LENGTHS)]
