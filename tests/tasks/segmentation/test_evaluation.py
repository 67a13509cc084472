from __future__ import annotations

import json

import pytest
import torch

from convattn.data import Preprocess
from convattn.runs.card import ModelCard
from convattn.tasks.segmentation.counts import count_pixels
from convattn.tasks.segmentation.evaluation import SegmentationEvaluation, summarise
from convattn.training.evaluation import Found
from tests.tasks.segmentation.shapes import CLASSES, Scenes, scenes

SIZES = ((40, 30), (64, 48), (20, 90))


def evaluated(
    *wrong: int, classes: int = 3, ignored: tuple[int, ...] = ()
) -> SegmentationEvaluation:
    """Evaluate masks of which those of the numbers ``wrong`` have sky in place of the wall."""
    source = scenes(sizes=SIZES)
    images = source.val
    assert isinstance(images, Scenes)
    counts = []
    for number in range(3):
        target = images.target(number)
        predicted = torch.from_numpy(images.mask(number, labelled=True))
        if number in wrong:
            predicted[predicted == 1] = 0
        counts.append(count_pixels(predicted, target))
    found = Found(
        outputs=[counts[:2], counts[2:]],
        targets=[[None, None], [None]],
        numbers=[0, 1, 2],
        broken=[],
        split="val",
        images_per_second=2.0,
        parameters=7,
        notes=["a note"],
    )
    card = ModelCard(
        model="glnet_nano",
        model_args={},
        class_names=CLASSES,
        preprocess=Preprocess((3, 64, 64), (0.5,) * 3, (0.5,) * 3),
        task="segmentation",
        method="upernet",
        epoch=4,
    )
    return summarise(card, source, images, found, ignored)


def test_perfect_masks_have_shares_of_one():
    found = evaluated()
    assert (found.mean_iou, found.pixel_accuracy, found.mean_accuracy) == (1.0, 1.0, 1.0)
    assert found.images == 3
    assert found.confused() == []
    assert found.best_line() == "100.00% mean IoU (3 held-out images)"


def test_metrics_are_those_of_all_pixels_and_of_each_image():
    found = evaluated(1)
    images = scenes(sizes=SIZES).val
    masks = [images.target(number) for number in range(3)]
    pixels = [[int((mask == number).sum()) for number in range(3)] for mask in masks]
    lost = pixels[1][1]
    sky, wall = (sum(row[number] for row in pixels) for number in (0, 1))
    sky_iou, wall_iou = sky / (sky + lost), (wall - lost) / wall
    assert found.mean_iou == pytest.approx((sky_iou + wall_iou + 1) / 3)
    assert [row.pixels for row in found.per_class] == [
        sum(row[n] for row in pixels) for n in range(3)
    ]
    assert [row.iou for row in found.per_class] == pytest.approx([sky_iou, wall_iou, 1])
    assert found.per_class[1].accuracy == pytest.approx(1 - lost / wall)
    image = found.predictions[1]
    assert image.mean_iou == pytest.approx((pixels[1][0] / (pixels[1][0] + lost) + 0 + 1) / 3)
    assert found.predictions[0].mean_iou == 1
    assert [row.index for row in found.worst] == [1, 0, 2]
    assert found.confused() == [("wall", "sky", lost / wall)]
    assert found.confusion[1][0] == lost


def test_table_has_classes_and_confusions():
    text = evaluated(0, 1).table()
    assert "red thing" in text
    assert "of wall is predicted as sky" in text
    lines = text.splitlines()
    assert lines[0].split() == ["class", "pixels", "IoU", "accuracy"]
    assert len({len(line) for line in lines[:4]}) == 1


def test_a_class_without_pixels_is_in_no_mean():
    found = evaluated(ignored=(2,))
    assert found.per_class[2].iou is None
    assert found.per_class[2].pixels == 0
    assert found.mean_iou == 1
    assert "red thing" not in found.table()


def test_results_are_written_as_json_and_csv(tmp_path):
    evaluated(2).write(tmp_path)
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert values["mean_iou"] < 1
    assert values["worst"][0]["index"] == 2
    assert values["class_names"] == list(CLASSES)
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "index,path,mean_iou,pixel_accuracy"
    assert lines[1] == "0,,1.000000,1.000000"
