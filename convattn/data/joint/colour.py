"""Random brightness, contrast, saturation and hue of float images, faster than torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor

BRIGHTNESS = 32.0  # added or subtracted at most, for values in 0..255
FACTORS = (0.5, 1.5)  # least and greatest factor of the contrast and of the saturation
HUE = 18 / 180  # largest turn of the hue, for a full turn of 1


def jitter(pixels: Tensor, strength: float) -> Tensor:
    """Change brightness, contrast and saturation in random order, as torchvision's `ColorJitter`.

    Args:
        pixels: float, (C, H, W), in 0..255; it is overwritten. Grey images have no saturation.
        strength: the factors lie in ``1 - strength`` to ``1 + strength``, and are at least 0.

    Returns:
        The pixels in 0..255.
    """
    for change in torch.randperm(3).tolist():
        factor = _uniform(max(0.0, 1 - strength), 1 + strength)
        if change == 0:
            pixels.mul_(factor)
        elif change == 1:
            mean = _grey(pixels).mean().item()
            pixels.mul_(factor).add_((1 - factor) * mean)
        elif len(pixels) == 3:
            pixels.lerp_(_grey(pixels), 1 - factor)
        pixels.clamp_(0, 255)
    return pixels


def distort(pixels: Tensor) -> Tensor:
    """Distort the colours: brightness, contrast, saturation and hue, each with probability 0.5.

    The contrast is changed before or after saturation and hue, at random. The method is that of Liu
    et al. 2016 (SSD, arXiv 1512.02325), with which the papers train their segmenters.

    Args:
        pixels: float, (C, H, W), in 0..255; it is overwritten. Grey images have no saturation and
            no hue.

    Returns:
        The pixels in 0..255.
    """
    if _happens():
        pixels.add_(_uniform(-BRIGHTNESS, BRIGHTNESS)).clamp_(0, 255)
    contrast = _uniform(*FACTORS) if _happens() else 1.0
    is_first = _happens()
    saturation = _uniform(*FACTORS) if _happens() else 1.0
    hue = _uniform(-HUE, HUE) if _happens() else 0.0
    if is_first and contrast != 1:
        pixels.mul_(contrast).clamp_(0, 255)
    if len(pixels) == 3 and (saturation, hue) != (1, 0):
        change_hue(pixels, saturation, hue)
    if not is_first and contrast != 1:
        pixels.mul_(contrast).clamp_(0, 255)
    return pixels


def change_hue(pixels: Tensor, saturation: float, hue: float) -> Tensor:
    """Multiply the saturation and turn the hue in HSV colours.

    With the value v, the chroma c and the hue h in 0..6, red is ``v - c + c * clip(|h - 3| - 1)``,
    green ``v - c + c * clip(2 - |h - 2|)`` and blue ``v - c + c * clip(2 - |h - 4|)``, clipped to
    0..1.

    Args:
        pixels: float, (3, H, W); it is overwritten.
        saturation: factor of the saturation, which is at most 1 afterwards.
        hue: part of a full turn.

    Returns:
        ``pixels``.
    """
    red, green, blue = pixels
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    turned = torch.where(
        value == red,
        green - blue,
        torch.where(
            value == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)
        ),
    )
    turned.div_(chroma.clamp(min=1e-6)).add_(6 * hue)
    turned -= torch.floor(turned / 6).mul_(6)
    chroma = torch.minimum(chroma.mul_(saturation), value)
    least = value - chroma
    torch.add(least, (turned - 3).abs_().sub_(1).clamp_(0, 1).mul_(chroma), out=red)
    torch.add(least, (turned - 2).abs_().neg_().add_(2).clamp_(0, 1).mul_(chroma), out=green)
    torch.add(least, (turned - 4).abs_().neg_().add_(2).clamp_(0, 1).mul_(chroma), out=blue)
    return pixels


def _grey(pixels: Tensor) -> Tensor:
    """Return the luminance (1, H, W) of an image (C, H, W)."""
    if len(pixels) == 1:
        return pixels
    red, green, blue = pixels.split(1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _happens() -> bool:
    return bool(torch.rand(()) < 0.5)


def _uniform(least: float, most: float) -> float:
    return torch.empty(()).uniform_(least, most).item()
