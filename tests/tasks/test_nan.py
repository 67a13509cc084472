"""A model with NaN weights is reported as such by the evaluation and by the prediction."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convattn import Predictor
from convattn.data import open_dataset
from convattn.tasks.detection.models import METHODS
from convattn.tasks.detection.task import Detection
from convattn.tasks.segmentation.task import Segmentation
from convattn.tasks.table import evaluate
from convattn.training.config import data_options
from convattn.training.trained import Checkpoint
from tests.tasks.detection.scenes import tiny as tiny_detector
from tests.tasks.detection.scenes import write_scenes
from tests.tasks.segmentation.shapes import scenes
from tests.tasks.segmentation.shapes import tiny as tiny_segmenter


def spoil(model: nn.Module, part: str) -> None:
    """Set a weight whose name contains ``part`` to NaN."""
    name = next(name for name, _ in model.named_parameters() if part in name)
    with torch.no_grad():
        model.get_parameter(name).fill_(math.nan)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 2, 2)


@pytest.mark.parametrize(
    ("method", "part"),
    [
        *((method, "backbone.body.") for method in METHODS),
        ("retinanet", "head.classification_head"),
        ("retinanet", "head.regression_head"),
        ("faster_rcnn", "rpn."),
        ("faster_rcnn", "box_head"),
        ("faster_rcnn", "bbox_pred"),
        ("mask_rcnn", "mask_head"),
        ("cascade_mask_rcnn", "stages.1.box_head"),
    ],
)
def test_a_detector(method: str, part: str, files: Path) -> None:
    config = tiny_detector(files, method, score=0.0)
    source = open_dataset(config.data, **data_options(config))
    torch.manual_seed(0)
    built = Detection(config, source).build()
    spoil(built.model, part)
    loaded = Checkpoint(built.model.eval(), built.card, Path("test"))
    image = source.val.image(0)
    (found,) = Predictor(loaded, device="cpu")(image, score=0.5)
    assert found.error == "the model computed NaN for this image"
    result: Any = evaluate(loaded, source, workers=0, device="cpu")
    assert any("computed NaN for 2 images" in note for note in result.notes)
    assert result.results == []
    assert result.map == 0


@pytest.mark.parametrize("part", ["backbone.body.", "head."])
def test_a_segmenter(part: str) -> None:
    source = scenes()
    built = Segmentation(tiny_segmenter(), source).build()
    spoil(built.model, part)
    loaded = Checkpoint(built.model.eval(), built.card, Path("test"))
    (found,) = Predictor(loaded, device="cpu")(source.val.image(0))
    assert found.error == "the model computed NaN for this image"
    result: Any = evaluate(loaded, source, workers=0, device="cpu")
    assert any("computed NaN for 2 images" in note for note in result.notes)
    assert (result.mean_iou, result.pixel_accuracy) == (0, 0)
