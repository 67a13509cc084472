"""A small data set in COCO's format, written by hand, and settings of small trainings on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convattn.tasks.detection.config import DetectionConfig
from convattn.tasks.table import load_config
from tests.data.objects.object_files import annotation, write_coco

COLOURS = {3: (220, 40, 40), 7: (40, 200, 40), 18: (40, 60, 220)}  # by the ids of the categories
TINY: dict[str, Any] = {
    "img_size": 64, "epochs": 1, "batch_size": 4, "warmup_steps": 0, "workers": 0, "threads": 1,
    "tensorboard": False, "accelerator": "cpu", "channels": 16, "head_depth": 1, "scale": [0.9, 1],
    "color_jitter": 0, "ema": False, "anchor_scale": 4,
}  # fmt: skip
NOT_RETINANET: dict[str, Any] = {
    "head_width": 32, "proposals": 20, "train_proposals": 40, "samples": 16, "rpn_samples": 32,
}  # fmt: skip


def write_scenes(root: Path, count: int = 8, held_out: int = 4) -> Path:
    """Write images of one to three coloured rectangles; the last one of each part is empty."""
    numbers = iter(range(1, 1000))
    for part, amount, first in (("train2017", count, 1), ("val2017", held_out, 100)):
        images, annotations = [], []
        for image in range(first, first + amount):
            rng = np.random.default_rng(image)
            pixels = rng.integers(100, 140, (48, 64, 3), dtype=np.uint8)
            empty = image == first + amount - 1
            for category in list(COLOURS)[: 0 if empty else int(rng.integers(1, 4))]:
                x, y = (int(v) for v in rng.integers(0, [36, 24]))
                width, height = (int(v) for v in rng.integers(12, 25, 2))
                pixels[y : y + height, x : x + width] = COLOURS[category]
                right, bottom = min(x + width, 64), min(y + height, 48)
                corners = [x, y, right, y, right, bottom, x, bottom]
                box = [x, y, right - x, bottom - y]
                annotations.append(
                    annotation(
                        next(numbers),
                        image,
                        category_id=category,
                        bbox=box,
                        area=box[2] * box[3],
                        segmentation=[corners],
                    )
                )
            name = f"{image:04}.png"
            path = root / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            images.append({"id": image, "file_name": name, "width": 64, "height": 48})
        write_coco(root, annotations, part=part, images=images, pictures=False)
    return root


def tiny(root: Path, method: str = "faster_rcnn", **changes: Any) -> DetectionConfig:
    """Return the configuration of a small training on the data that `write_scenes` wrote."""
    where = {"data": f"coco:{root}", "runs": str(root / "runs"), "method": method}
    heads = {} if method == "retinanet" else NOT_RETINANET
    settings = {**TINY, **heads, **where, **changes}
    if "steps" in changes:
        del settings["epochs"]
    config = load_config("detection", None, settings)
    assert isinstance(config, DetectionConfig)
    return config
