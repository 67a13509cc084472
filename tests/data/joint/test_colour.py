"""Photometric distortion: the published ranges, on HSV colours."""

from __future__ import annotations

import colorsys

import pytest
import torch
from torchvision.transforms import v2

from convattn.data.joint.colour import change_hue, distort, jitter


@pytest.mark.parametrize(
    ("saturation", "hue"), [(1.0, 0.0), (0.5, 0.1), (1.5, -0.1), (1.0, 0.05), (0.7, 0.0)]
)
def test_saturation_and_hue_equal_those_of_hsv_colours(saturation: float, hue: float) -> None:
    torch.manual_seed(0)
    pixels = torch.rand(3, 40, 40) * 255
    pixels[:, 0] = 255 * torch.rand(1, 40)  # grey
    pixels[:, 1] = torch.randint(0, 2, (3, 40)) * 255.0  # two equal channels
    expected = []
    for rgb in (pixels / 255).flatten(1).T.tolist():
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        expected.append(colorsys.hsv_to_rgb((h + hue) % 1, min(1, s * saturation), v))
    found = change_hue(pixels.clone(), saturation, hue)
    torch.testing.assert_close(found.flatten(1).T / 255, torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", [0.4, 1.5])
def test_colour_jitter_equals_that_of_torchvision(channels: int, strength: float) -> None:
    torch.manual_seed(0)
    pixels = torch.rand(channels, 8, 9)
    order: set[tuple[int, ...]] = set()
    for seed in range(12):
        torch.manual_seed(seed)
        found = jitter(pixels.clone() * 255, strength) / 255
        torch.manual_seed(seed)  # the same random numbers, in the order in which they are drawn
        expected = pixels
        steps = torch.randperm(3).tolist()
        for step in steps:
            factor = torch.empty(()).uniform_(max(0.0, 1 - strength), 1 + strength).item()
            change = (
                v2.functional.adjust_brightness,
                v2.functional.adjust_contrast,
                v2.functional.adjust_saturation,
            )[step]
            expected = change(expected, factor)
        order.add(tuple(steps))
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    assert len(order) > 2


def test_brightness_and_contrast_stay_in_their_ranges() -> None:
    shifts, factors = [], []
    for seed in range(200):
        torch.manual_seed(seed)
        dark, light = distort(torch.tensor([50.0, 100.0]).repeat(3, 1)[:, None])[0, 0].tolist()
        factors.append((light - dark) / 50)
        shifts.append(light / factors[-1] - 100)
    assert 0.5 <= min(factors) < 0.6
    assert 1.4 < max(factors) <= 1.5
    assert max(map(abs, shifts)) <= 64.1  # of 32, divided by the contrast if it comes later
    assert 60 < sum(factor == pytest.approx(1) for factor in factors) < 140


def test_distorted_values_stay_in_the_range_of_pixels() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        found = distort(torch.rand(3, 8, 8) * 255)
        assert found.min() >= 0
        assert found.max() <= 255


def test_grey_images_change_in_brightness_and_contrast_only() -> None:
    torch.manual_seed(3)
    assert distort(torch.rand(1, 8, 8) * 255).shape == (1, 8, 8)
