"""Small images with a mask, in memory and as files, for the tests of segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from convattn.data import DataSource, ImageSet
from convattn.data.value_range import ValueRange
from convattn.tasks.segmentation.config import SegmentationConfig
from convattn.tasks.table import load_config

CLASSES = ("sky", "wall", "red thing")
COLOURS = np.array([[70, 130, 220], [140, 140, 120], [220, 40, 40]])
TINY: dict[str, Any] = {
    "data": "masks:nowhere",
    "channels": 16,
    "img_size": 64,
    "batch_size": 2,
    "epochs": 2,
    "warmup_epochs": 0,
    "workers": 0,
    "threads": 1,
    "tensorboard": False,
    "accelerator": "cpu",
}


class Scenes(ImageSet):
    """Images with a red rectangle before a wall under a sky; the first row is not labelled.

    Args:
        sizes: width and height of each image.
    """

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int) -> Image.Image:
        """Return colours of the classes with noise."""
        mask = self.mask(index, labelled=True)
        noise = np.random.default_rng(index).normal(0, 20, (*mask.shape, 3))
        return Image.fromarray((COLOURS[mask] + noise).clip(0, 255).astype(np.uint8))

    def target(self, index: int) -> tv_tensors.Mask:
        """Return the classes of the pixels."""
        return tv_tensors.Mask(torch.from_numpy(self.mask(index)))

    def scaled(self, value_range: ValueRange | None) -> Scenes:
        """Return the same images, which have 8 bits."""
        return self

    def mask(self, index: int, *, labelled: bool = False) -> np.ndarray:
        """Return the class of each pixel, 255 in the first row unless ``labelled``."""
        random = np.random.default_rng(index)
        width, height = self.sizes[index]
        mask = np.zeros((height, width), np.uint8)
        mask[random.integers(height // 4, height // 2) :] = 1
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        mask[top : top + height // 3, left : left + width // 3] = 2
        if not labelled:
            mask[0] = 255
        return mask


def scenes(train: int = 4, sizes: tuple[tuple[int, int], ...] = ((64, 48), (50, 70))) -> DataSource:
    """Return images for training, and one held-out image of each size."""
    return DataSource(
        name="scenes",
        class_names=CLASSES,
        train=Scenes([(64, 48)] * train),
        val=Scenes(list(sizes)),
    )


def tiny(**changes: Any) -> SegmentationConfig:
    """Return the settings of a small training."""
    config = load_config("segmentation", None, {**TINY, **changes})
    assert isinstance(config, SegmentationConfig)
    return config
