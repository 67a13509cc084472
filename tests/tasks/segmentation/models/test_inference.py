from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.tasks.segmentation.models.inference import Inference, resized_argmax, segment

WEIGHT = torch.tensor([[1.0, -1, 0.5], [0.2, 2, -1], [-1, 0.3, 1], [0.1, 0.1, 0.1]])


def pointwise(x: Tensor) -> Tensor:
    """Compute four logits of each pixel from its three channels."""
    return torch.einsum("kc,bchw->bkhw", WEIGHT, x)


def column(x: Tensor) -> Tensor:
    """Compute one logit: the number of the pixel's column in its window."""
    return torch.arange(x.shape[3], dtype=torch.float32).expand(len(x), 1, *x.shape[2:])


class Recorder:
    """A model that keeps the shapes of its inputs."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return pointwise(x)


@pytest.mark.parametrize("size", [(96, 160), (64, 64), (32, 96), (32, 32)])
def test_windows_of_a_pointwise_model_give_the_logits_of_the_whole_image(size):
    images = torch.randn(2, 3, *size)
    sliding = Inference("slide", window=64, stride=48, pixels=3 * 64 * 64)
    torch.testing.assert_close(sliding.logits(pointwise, images), pointwise(images))


def test_overlapping_windows_are_averaged():
    found = Inference("slide", window=32, stride=16).logits(column, torch.zeros(1, 3, 32, 64))
    first, inner = torch.arange(16.0), torch.arange(16, 32.0)
    expected = torch.cat([first, (inner + first) / 2, (inner + first) / 2, inner])
    torch.testing.assert_close(found[0, 0], expected.expand(32, 64))


def test_last_window_ends_at_the_end_of_the_image():
    model = Recorder()
    Inference("slide", window=64, stride=64).logits(model, torch.zeros(1, 3, 64, 160))
    assert model.shapes == [(3, 3, 64, 64)]


def test_windows_are_computed_in_batches_and_small_images_as_they_are():
    model = Recorder()
    sliding = Inference("slide", window=64, stride=32, pixels=4 * 64 * 64)
    sliding.logits(model, torch.zeros(1, 3, 96, 128))
    assert model.shapes == [(4, 3, 64, 64), (2, 3, 64, 64)]
    model.shapes.clear()
    sliding.logits(model, torch.zeros(1, 3, 32, 128))
    assert model.shapes == [(3, 3, 32, 64)]


def test_images_are_computed_in_batches():
    model, sizes = Recorder(), [(64, 64)] * 5
    segment(model, torch.zeros(5, 3, 64, 64), sizes, sizes, Inference(pixels=2 * 64 * 64))
    assert model.shapes == [(2, 3, 64, 64), (2, 3, 64, 64), (1, 3, 64, 64)]


def test_flip_averages_with_the_mirrored_image():
    images = torch.zeros(1, 3, 32, 64)
    found = Inference(flip=True).logits(column, images)
    torch.testing.assert_close(found, torch.full((1, 1, 32, 64), 31.5))
    images = torch.randn(2, 3, 32, 64)
    torch.testing.assert_close(Inference(flip=True).logits(pointwise, images), pointwise(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "slid"}, "did you mean 'slide'"),
        ({"window": 500}, "multiple of 32, got 500; use 512"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": 64, "stride": 65}, "stride must be at most window=64"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"pixels": 0}, "pixels must be at least 1"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Inference(**arguments)


@pytest.mark.parametrize("size", [(50, 70), (20, 11), (24, 40), (1, 1)])
@pytest.mark.parametrize("at_once", [1, 5000, 10**6])
def test_argmax_in_strips_equals_that_of_all_interpolated_logits(size, at_once):
    logits = torch.randn(12, 24, 40)
    whole = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    found = resized_argmax(logits, size, at_once=at_once)
    assert found.dtype == torch.uint8
    assert torch.equal(found, whole.argmax(0).to(torch.uint8))


def test_an_image_whose_logits_are_nan_has_no_class():
    images = torch.zeros(2, 3, 32, 32)
    images[0, 0, 5, 5] = torch.nan
    first, second = segment(pointwise, images, [(32, 32)] * 2, [(20, 10)] * 2, Inference())
    assert (first == 255).all()
    assert (second == 0).all()


def test_argmax_of_smooth_logits_equals_that_of_all_interpolated_logits():
    few = torch.randn(1, 30, 4, 5, generator=torch.Generator().manual_seed(0))
    logits = F.interpolate(few, size=(60, 80), mode="bicubic")[0]
    whole = F.interpolate(logits[None], size=(123, 201), mode="bilinear", align_corners=False)[0]
    found = resized_argmax(logits, (123, 201), at_once=30 * 201 * 8)
    assert torch.equal(found, whole.argmax(0).to(torch.uint8))


def test_a_class_can_be_the_greatest_between_two_others():
    logits = torch.tensor([[[1.0, -1.0]], [[-1.0, 1.0]], [[0.5, 0.5]], [[-2.0, -2.0]]])
    assert resized_argmax(logits, (1, 8)).tolist() == [[0, 0, 0, 2, 2, 1, 1, 1]]


def test_masks_have_the_sizes_of_the_images_without_padding():
    images = torch.randn(3, 3, 64, 96)
    resized, sizes = [(64, 96), (40, 33), (64, 90)], [(128, 192), (40, 33), (7, 300)]
    masks = segment(pointwise, images, resized, sizes, Inference())
    assert [tuple(mask.shape) for mask in masks] == sizes
    for image, (height, width), size, mask in zip(images, resized, sizes, masks, strict=True):
        logits = pointwise(image[None, :, :height, :width])
        whole = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]
        assert torch.equal(mask, whole.argmax(0).to(torch.uint8))


def test_an_image_is_padded_to_a_multiple_of_32_whatever_the_batch():
    model = Recorder()
    images = torch.zeros(3, 3, 128, 160)
    resized = [(40, 33), (128, 160), (33, 64)]
    segment(model, images, resized, resized, Inference())
    assert model.shapes == [(2, 3, 64, 64), (1, 3, 128, 160)]
