"""A resized, cropped and mirrored view of an image, and of its boxes and masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class View:
    """A window into a resized image, mirrored if ``flip`` is set.

    Args:
        size: height and width of the resized image.
        window: top, left, height and width of the part of the resized image that is kept.
        flip: whether left and right are exchanged.
    """

    size: tuple[int, int]
    window: tuple[int, int, int, int]
    flip: bool = False

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the view."""
        return self.window[2:]

    def image(self, pixels: Tensor, mode: InterpolationMode) -> Tensor:
        """Return the view of an image (C, H, W)."""
        pixels = F.resize(pixels, list(self.size), interpolation=mode)
        top, left, height, width = self.window
        pixels = pixels[:, top : top + height, left : left + width]
        return pixels.flip(-1) if self.flip else pixels

    def boxes(self, boxes: tv_tensors.BoundingBoxes) -> tv_tensors.BoundingBoxes:
        """Return the boxes (XYXY, float) in pixels of the view; they end at its edges."""
        ratio = [new / old for new, old in zip(self.size, boxes.canvas_size, strict=True)]
        top, left, height, width = self.window
        found = boxes.as_subclass(Tensor) * torch.tensor(ratio[::-1] * 2)
        found -= torch.tensor([left, top] * 2)
        if self.flip:
            found[:, [0, 2]] = width - found[:, [2, 0]]
        found[:, 0::2] = found[:, 0::2].clamp(0, width)
        found[:, 1::2] = found[:, 1::2].clamp(0, height)
        return tv_tensors.BoundingBoxes(
            found, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=self.canvas
        )

    def mask(self, mask: Tensor) -> tv_tensors.Mask:
        """Return the view of a mask (..., H, W): the value at the centre of each new pixel.

        torchvision takes the value at the corner, which moves a smaller mask by half a pixel.
        """
        values = np.asarray(mask)
        for axis, first, new in zip((-2, -1), self.window, self.canvas, strict=False):
            place = np.arange(first, first + new)
            if axis == -1 and self.flip:
                place = place[::-1]
            old = values.shape[axis]
            values = values.take((2 * place + 1) * old // (2 * self.size[axis]), axis)
        return tv_tensors.Mask(torch.from_numpy(values))


def whole(size: tuple[int, int]) -> View:
    """Return the view of a whole image at another size (height, width)."""
    return View(size, (0, 0, *size))
