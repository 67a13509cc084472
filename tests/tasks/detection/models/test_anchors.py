from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from convattn.tasks.detection.models.anchors import AnchorMatcher, PyramidAnchors

STRIDES = (4, 8, 16, 32, 64)


def maps(height: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.zeros(1, 2, -(-height // s), -(-width // s), dtype=dtype) for s in STRIDES]


def anchors(generator: AnchorGenerator, height: int, width: int, **arguments) -> list[Tensor]:
    images = ImageList(torch.zeros(2, 3, height, width), [(height, width)] * 2)
    return generator(images, maps(height, width, **arguments))


def test_anchors_of_the_paper_are_torchvisions_up_to_rounding():
    sizes = tuple((8 * s,) for s in STRIDES)
    theirs = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    ours = anchors(PyramidAnchors(STRIDES, 8.0), 128, 192)
    expected = anchors(theirs, 128, 192)
    assert len(ours) == 2
    assert (ours[0] - expected[0]).abs().max() <= 0.5


def test_octaves_are_the_anchor_sizes_of_a_retinanet():
    first = anchors(PyramidAnchors((8, 16, 32, 64, 128), 4.0, octaves=3), 64, 64)[0][:9]
    side = (first[:, 2:] - first[:, :2]).prod(1).sqrt()
    expected = torch.tensor([32.0, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)]).repeat(3)
    torch.testing.assert_close(side, expected)
    ratio = (first[:, 3] - first[:, 1]) / (first[:, 2] - first[:, 0])
    torch.testing.assert_close(ratio, torch.tensor([0.5, 1.0, 2.0]).repeat_interleave(3))


@pytest.mark.parametrize("size", [(45, 71), (33, 64), (31, 257)])
def test_centres_are_multiples_of_the_strides_at_any_image_size(size):
    each = anchors(PyramidAnchors(STRIDES, 8.0), *size)[0]
    counts = [3 * m.shape[2] * m.shape[3] for m in maps(*size)]
    for stride, part in zip(STRIDES, each.split(counts), strict=True):
        centres = (part[:, :2] + part[:, 2:]) / 2
        torch.testing.assert_close(centres, (centres / stride).round() * stride)
        last = [(side - 1) // stride * stride for side in reversed(size)]
        torch.testing.assert_close(centres.amax(0), torch.tensor(last).float())


def test_anchors_are_float32_over_maps_of_another_dtype():
    generator = PyramidAnchors(STRIDES, 8.0)
    expected = anchors(generator, 64, 640)[0]
    half = anchors(generator, 64, 640, dtype=torch.bfloat16)[0]
    assert torch.equal(half, expected)
    assert half.dtype == torch.float32


def test_small_scale_gives_small_anchors_with_area():
    each = anchors(PyramidAnchors(STRIDES, 0.25), 64, 64)[0]
    assert (each[:, 2:] > each[:, :2]).all()
    torch.testing.assert_close((each[1, 2:] - each[1, :2]), torch.tensor([1.0, 1.0]))


def test_anchors_of_a_model_that_was_built_on_the_meta_device():
    with torch.device("meta"):
        generator = PyramidAnchors(STRIDES, 8.0)
    expected = anchors(PyramidAnchors(STRIDES, 8.0), 64, 64)[0]
    assert torch.equal(anchors(generator, 64, 64)[0], expected)


def test_objects_take_their_best_anchors_from_the_least_iou_on():
    overlap = torch.tensor([[0.8, 0.6, 0.1, 0.0], [0.0, 0.0, 0.3, 0.1], [0.0, 0.0, 0.0, 0.2]])
    assert AnchorMatcher(0.7, 0.25, 0.3)(overlap).tolist() == [0, -2, 1, -1]
    assert AnchorMatcher(0.7, 0.25)(overlap).tolist() == [0, -2, 1, 2]


def test_object_outside_of_all_anchors_takes_none():
    overlap = torch.tensor([[0.8, 0.1, 0.0], [0.0, 0.0, 0.0]])
    assert AnchorMatcher(0.5, 0.4)(overlap).tolist() == [0, -1, -1]
    assert AnchorMatcher(0.5, 0.4)(overlap[1:]).tolist() == [-1, -1, -1]
