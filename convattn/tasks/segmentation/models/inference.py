"""Inference of a segmenter: whole images or sliding windows, averaged with mirrored images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.checks import check_choice, check_positive
from convattn.data.joint.padding import IGNORED, PAD_TO, padded_groups

Logits = Callable[[Tensor], Tensor]  # (B, C, H, W) to (B, K, H, W)

MODES = ("whole", "slide")
_VALUES = 2**22  # interpolated logits at a time, 16 MB


@dataclass(frozen=True)
class Inference:
    """How the logits of an image are computed.

    Args:
        mode: "whole" for the whole image at once; "slide" for overlapping windows, whose logits are
            averaged.
        window: height and width of a window, a multiple of 32.
        stride: distance of two windows; None for two thirds of the window.
        flip: average the logits with those of the mirrored image.
        pixels: pixels of the images, or windows, that the model gets at a time, if more than one
            fits.

    Raises:
        ValueError: an unknown mode, a number below 1, ``window`` is no multiple of 32, or
            ``stride`` is greater than ``window``.
    """

    mode: Literal["whole", "slide"] = "whole"
    window: int = 512
    stride: int | None = None
    flip: bool = False
    pixels: int = 2**20

    def __post_init__(self) -> None:
        check_choice("inference", self.mode, MODES)
        check_positive("window", self.window)
        check_positive("stride", self.step)
        check_positive("pixels", self.pixels)
        if self.window % PAD_TO:
            near = max(PAD_TO, round(self.window / PAD_TO) * PAD_TO)
            raise ValueError(
                f"window must be a multiple of {PAD_TO}, got {self.window}; use {near}"
            )
        if self.step > self.window:
            raise ValueError(
                f"stride must be at most window={self.window}, or pixels are left out, got "
                f"{self.stride}"
            )

    @property
    def step(self) -> int:
        """The distance of two windows in pixels."""
        return max(1, 2 * self.window // 3) if self.stride is None else self.stride

    def at_once(self, height: int, width: int) -> int:
        """Return the number of images of a size that the model gets at a time."""
        return max(1, self.pixels // (height * width))

    def logits(self, model: Logits, images: Tensor) -> Tensor:
        """Return the logits (B, K, H, W) of images (B, C, H, W) in float32."""
        found = self._once(model, images)
        if self.flip:
            found = (found + self._once(model, images.flip(-1)).flip(-1)) / 2
        return found

    def _once(self, model: Logits, images: Tensor) -> Tensor:
        if self.mode == "whole":
            return model(images).float()
        return torch.stack([self._slide(model, image) for image in images])

    def _slide(self, model: Logits, image: Tensor) -> Tensor:
        """Return the mean logits (K, H, W) of the windows over an image (C, H, W)."""
        height, width = image.shape[1:]
        corners = [
            (top, left)
            for top in _starts(height, self.window, self.step)
            for left in _starts(width, self.window, self.step)
        ]
        rows, columns = min(self.window, height), min(self.window, width)
        total: Tensor | None = None
        count = image.new_zeros(height, width, dtype=torch.float32)
        at_once = self.at_once(rows, columns)
        for first in range(0, len(corners), at_once):
            chosen = corners[first : first + at_once]
            windows = [image[:, y : y + rows, x : x + columns] for y, x in chosen]
            found = model(torch.stack(windows)).float()
            if total is None:
                total = found.new_zeros(found.shape[1], height, width)
            for (y, x), logits in zip(chosen, found, strict=True):
                total[:, y : y + rows, x : x + columns] += logits
                count[y : y + rows, x : x + columns] += 1
        assert total is not None  # an image has at least one window
        return total.div_(count)


def segment(
    model: Logits,
    images: Tensor,
    resized: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[int, int]],
    inference: Inference,
) -> list[Tensor]:
    """Return the most probable class of each pixel of each image.

    Images that have other sizes than the rest of the batch are computed apart from it, so that the
    padding of an image does not depend on the batch.

    Args:
        model: computes logits at the size of its input, for at most 255 classes.
        images: (B, C, H, W), padded on the right and at the bottom.
        resized: height and width of each image without the padding.
        sizes: height and width of each result.
        inference: how the logits are computed.

    Returns:
        Class numbers, uint8 (H, W) for each image; 255 everywhere if a logit is NaN or infinite.
    """
    found: list[Tensor | None] = [None] * len(images)
    for numbers, part in _parts(images, resized, inference):
        logits = inference.logits(model, part)
        for number, values in zip(numbers, logits, strict=True):
            height, width = resized[number]
            if values.isfinite().all():
                found[number] = resized_argmax(values[:, :height, :width], sizes[number])
            else:
                found[number] = torch.full(
                    sizes[number], IGNORED, dtype=torch.uint8, device=values.device
                )
    return [mask for mask in found if mask is not None]


def resized_argmax(logits: Tensor, size: tuple[int, int], *, at_once: int = _VALUES) -> Tensor:
    """Return the class of the greatest logit at another size, which is interpolated bilinearly.

    The rows of the result are computed in strips, each from the logits of the classes that can be
    the greatest there: all logits of 150 classes would need 1.2 GB for two megapixels.

    Args:
        logits: (K, H, W).
        size: height and width of the result.
        at_once: largest number of interpolated logits at a time, if more than one row fits.

    Returns:
        Class numbers, uint8 (height, width); of equal logits the first class.
    """
    if logits.shape[1:] == size:
        return logits.argmax(0).to(torch.uint8)
    height, width = size
    rows = max(1, at_once // (len(logits) * width))
    found = torch.empty(size, dtype=torch.uint8, device=logits.device)
    for first in range(0, height, rows):
        part = slice(first, min(first + rows, height))
        above, below, share = _neighbours(logits, part, height)
        top, bottom = int(above[0]), int(below[-1]) + 1
        classes = _candidates(logits[:, top:bottom])
        chosen = logits[classes, top:bottom]
        upper, lower = (chosen[:, (row - top).to(logits.device)] for row in (above, below))
        strip = torch.lerp(upper, lower, share[:, None])
        wide = (len(share), width)
        values = F.interpolate(strip[None], size=wide, mode="bilinear", align_corners=False)[0]
        found[part] = classes[values.argmax(0)].to(torch.uint8)
    return found


def _neighbours(logits: Tensor, part: slice, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for rows of a result of ``height`` rows the rows that they lie between.

    Returns:
        The row above, the row below, and the share of the row below.
    """
    given = logits.shape[1]
    row = torch.arange(part.start, part.stop, dtype=torch.float64)  # not every GPU has this type
    place = ((row + 0.5) * (given / height) - 0.5).clamp(min=0)
    above = place.long()
    return above, (above + 1).clamp(max=given - 1), (place - above).to(logits)


def _candidates(logits: Tensor) -> Tensor:
    """Return the classes that can have the greatest interpolated logit somewhere.

    A class can have it between four neighbours only if its greatest logit there is at least the
    least logit of every other class.
    """
    window = [min(2, side) for side in logits.shape[1:]]
    greatest = F.max_pool2d(logits[None], window, 1)[0]
    least = -F.max_pool2d(-logits[None], window, 1)[0]
    rounding = 1e-5 * logits.amax().abs()
    can = greatest >= least.amax(0) - rounding
    return can.flatten(1).any(1).nonzero()[:, 0]


def _parts(
    images: Tensor, resized: Sequence[tuple[int, int]], inference: Inference
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the numbers of images that the model gets at a time, and these images."""
    for numbers, group in padded_groups(images, resized):
        count = inference.at_once(*group.shape[2:])
        for first in range(0, len(numbers), count):
            yield numbers[first : first + count], group[first : first + count]


def _starts(side: int, window: int, step: int) -> list[int]:
    """Return the first pixels of windows that cover a side; the last one ends at its end."""
    last = max(0, side - window)
    return [*range(0, last, step), last]
