"""Slot maps as pictures: a colour for each slot, over the input of the network."""

from __future__ import annotations

import colorsys

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_GOLDEN_RATIO = 0.618034
# The share of the slot in the colour of a pixel; the rest is the grey image. Its black is made
# lighter, so that the colours of slots differ in dark areas too.
_STRENGTH = 0.6
_BLACK = 0.2


def slot_colours(number: int) -> Tensor:
    """Return ``number`` colours (number, 3) in 0..1; adjacent colours differ clearly."""
    lightness = (0.50, 0.60, 0.72)
    colours = [
        colorsys.hls_to_rgb(slot * _GOLDEN_RATIO % 1, lightness[slot % 3], 0.6)
        for slot in range(number)
    ]
    return torch.tensor(colours)


def input_picture(x: Tensor, *, size: int = 192) -> Image.Image:
    """Return a normalised network input (C, H, W) as a picture with the full range of values."""
    return _to_image(_stretch(x, size))


def slot_picture(maps: Tensor, x: Tensor, *, size: int = 192) -> Image.Image:
    """Colour each pixel by the slot with the largest weight, over the grey image.

    The maps are enlarged before the largest weight is chosen, so that borders between slots are
    smooth even for a map of 8 x 8 positions.

    Args:
        maps: soft assignment (M, h, w) of positions to slots, from ``slot_maps``.
        x: the network input (C, H, W) of these maps.
        size: longer side of the picture in pixels.

    Returns:
        A picture of the input's proportions.
    """
    grey = _stretch(x, size).mean(dim=0, keepdim=True)
    enlarged = F.interpolate(
        maps[None].float().cpu(), grey.shape[-2:], mode="bicubic", align_corners=False
    )
    colours = slot_colours(len(maps))[enlarged[0].argmax(dim=0)].permute(2, 0, 1)
    grey = _BLACK + (1 - _BLACK) * grey
    return _to_image(_STRENGTH * colours + (1 - _STRENGTH) * grey)


def _stretch(x: Tensor, size: int) -> Tensor:
    """Scale an input to values in 0..1, three channels and a longer side of ``size``."""
    x = x.detach().float().cpu()
    low, high = x.amin(), x.amax()
    x = (x - low) / (high - low).clamp_min(1e-6)
    x = x[:3] if x.shape[0] >= 3 else x[:1].expand(3, -1, -1)
    scale = size / max(x.shape[-2:])
    height, width = (max(1, round(side * scale)) for side in x.shape[-2:])
    return F.interpolate(x[None], (height, width), mode="nearest")[0]


def _to_image(pixels: Tensor) -> Image.Image:
    array = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)
