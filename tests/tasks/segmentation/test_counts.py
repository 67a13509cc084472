from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from convattn.tasks.segmentation.counts import (
    SegmentationMeter,
    confusion_of,
    count_pixels,
    metrics_of,
)


def mask(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


def test_metrics_of_a_case_by_hand():
    target = mask([[0, 0, 0, 1], [1, 1, 255, 255]])
    predicted = mask([[0, 0, 1, 1], [1, 2, 0, 2]])
    confusion = confusion_of(count_pixels(predicted, target), 4)
    expected = [[2, 1, 0, 0, 0], [0, 2, 1, 0, 0], [0] * 5, [0] * 5]
    assert confusion.tolist() == expected
    found = metrics_of(confusion)
    assert found.iou[:3].tolist() == pytest.approx([2 / 3, 2 / 4, 0])
    assert found.iou[3].isnan()
    assert found.mean_iou.item() == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found.accuracy[:2].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert found.accuracy[2:].isnan().all()
    assert found.mean_accuracy.item() == pytest.approx(2 / 3)
    assert found.pixel_accuracy.item() == pytest.approx(4 / 6)


def test_counts_are_whole_numbers_beyond_those_of_float32():
    pairs = torch.tensor([[0, 2**24 + 1], [257, 2**40 + 1]])
    meter = SegmentationMeter(2)
    for _ in range(3):
        meter.update([pairs], [None])
    assert meter.confusion.dtype == torch.int64
    assert meter.confusion.diagonal().tolist() == [3 * (2**24 + 1), 3 * (2**40 + 1)]


@pytest.mark.parametrize("classes", [5, 150, 255])
def test_mean_iou_equals_that_of_torchmetrics(classes):
    torch.manual_seed(0)
    reference = MulticlassJaccardIndex(classes, ignore_index=255, average="macro")
    meter = SegmentationMeter(classes)
    for size in ((30, 40), (7, 90)):
        target = torch.randint(0, min(classes, 40), size, dtype=torch.uint8)
        predicted = torch.where(
            torch.rand(size) < 0.7, target, torch.randint(0, min(classes, 60), size)
        ).to(torch.uint8)
        target[:3] = 255
        predicted = torch.where(target == 255, 1, predicted).to(torch.uint8)
        reference.update(predicted.long()[None], target.long()[None])
        meter.update([count_pixels(predicted, target)], [None])
    assert meter.compute()["miou"].item() == pytest.approx(reference.compute().item(), abs=1e-6)


def test_pixels_without_a_class_are_wrong():
    target, predicted = mask([[0, 0, 1]]), mask([[0, 255, 255]])
    found = metrics_of(confusion_of(count_pixels(predicted, target), 2))
    assert found.iou.tolist() == [0.5, 0.0]
    assert found.pixel_accuracy.item() == pytest.approx(1 / 3)


def test_ignored_classes_do_not_count():
    target, predicted = mask([[0, 0, 1, 2]]), mask([[0, 0, 0, 2]])
    meter = SegmentationMeter(3, ignored=(1,))
    meter.update([count_pixels(predicted, target)], [None])
    assert {name: v.item() for name, v in meter.compute().items()} == {
        "miou": 1.0,
        "acc": 1.0,
        "macc": 1.0,
    }


def test_an_image_without_labelled_pixels_has_no_metrics():
    empty = count_pixels(mask([[1, 0]]), mask([[255, 255]]))
    assert empty.shape == (0, 2)
    found = metrics_of(confusion_of(empty, 2))
    assert math.isnan(found.mean_iou)
    assert math.isnan(found.pixel_accuracy)


def test_masks_of_other_sizes_are_an_error():
    with pytest.raises(ValueError, match=r"\(1, 3\).*\(1, 2\)"):
        count_pixels(mask([[1, 0]]), mask([[0, 0, 1]]))


def test_counts_of_an_image_are_small():
    predicted, target = (torch.randint(0, 20, (400, 600), dtype=torch.uint8) for _ in range(2))
    pairs = count_pixels(predicted, target)
    assert pairs.shape == (400, 2)
    assert pairs[:, 1].sum() == 400 * 600
