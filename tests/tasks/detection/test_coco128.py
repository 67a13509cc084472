"""The numbers on COCO128's files, where ``CONVATTN_DATA`` has them, are those of COCO's program."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convattn.data import Preprocess, open_dataset
from convattn.runs.card import ModelCard
from convattn.runs.rle import decode_mask, encode_mask
from convattn.tasks.detection.evaluation import DetectionEvaluation, summarise
from convattn.tasks.detection.meter import PREFIXES
from convattn.tasks.detection.objects import Objects, kept_target
from convattn.training.evaluation import Found

STATS = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "mar_1", "mar_10")
COCO128 = Path(os.environ.get("CONVATTN_DATA", "")) / "coco128"


def perturbed(truth: Objects, rng: np.random.Generator, classes: int) -> Objects:
    """Return objects that lie a few pixels beside the true ones, some of them of another class."""
    number = len(truth["labels"])
    steps = rng.normal(0, 3, (number, 4)).round(1).astype(np.float32)
    boxes = truth["boxes"] + torch.from_numpy(steps)
    boxes = torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)], 1)
    labels = np.where(rng.random(number) < 0.2, rng.integers(0, classes, number), truth["labels"])
    return Objects(
        boxes=(boxes * 100).round() / 100,
        labels=torch.from_numpy(labels),
        scores=torch.from_numpy(rng.permutation(10_000)[:number].astype(np.float32) / 10_000),
        crowd=torch.zeros(number, dtype=torch.bool),
        area=torch.zeros(number),
        masks=[
            encode_mask(np.roll(decode_mask(mask), rng.integers(-3, 4, 2), (0, 1)))
            for mask in truth["masks"]
        ],
        image_id=0,
    )


@pytest.mark.skipif(not COCO128.is_dir(), reason="CONVATTN_DATA names no folder with coco128")
def test_the_results_on_coco128_are_those_of_cocos_own_program() -> None:
    data = open_dataset(f"coco:{COCO128}", targets="instances")
    images, rng = data.val, np.random.default_rng(0)
    assert images is not None
    targets = [kept_target(images.target(number)) for number in range(len(images))]
    found = [perturbed(target, rng, len(data.class_names)) for target in targets]
    card = ModelCard(
        model="glnet_nano",
        model_args={},
        class_names=data.class_names,
        preprocess=Preprocess((3, 64, 64), (0.5,) * 3, (0.5,) * 3),
        task="detection",
        method="mask_rcnn",
    )
    outputs = Found(
        outputs=[found],
        targets=[targets],
        numbers=list(range(len(images))),
        broken=[],
        split="val",
        images_per_second=1.0,
        parameters=1,
        notes=[],
    )
    result = summarise(card, data, images, outputs)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(COCO128 / "annotations" / "instances_val2017.json"))
        for kind, prefix in PREFIXES.items():
            # The area of a result with a box is that of the box, so that masks stand alone.
            left_out = {"bbox"} if kind == "segm" else {"segmentation"}
            results = [{k: v for k, v in r.items() if k not in left_out} for r in result.results]
            expected = COCOeval(truth, truth.loadRes(results), kind)
            expected.evaluate()
            expected.accumulate()
            expected.summarize()
            names = [n for n in STATS if prefix + n in DetectionEvaluation.__dataclass_fields__]
            ours = {name: getattr(result, prefix + name) for name in names}
            theirs = dict(zip(STATS, expected.stats.tolist(), strict=False))
            assert ours == pytest.approx({name: theirs[name] for name in names}, abs=1e-6)
            assert {"map", "map50", "map75"} <= ours.keys()
    assert len(truth.imgs) == len(images) == 100
    assert 0.2 < result.map < 0.9
    assert result.mask_map is not None
