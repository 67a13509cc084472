"""Settings that Ultralytics reads when it is imported, so that it uses no network."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

_CONFIG = Path(tempfile.mkdtemp(prefix="convattn-ultralytics-"))
atexit.register(shutil.rmtree, _CONFIG, ignore_errors=True)
os.environ["YOLO_CONFIG_DIR"] = str(_CONFIG)
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_AUTOINSTALL"] = "false"


@pytest.fixture
def squares(tmp_path) -> Path:
    """Write a data set in YOLO's format: grey images with one coloured square each."""
    place_font()
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        images, labels = tmp_path / "images" / part, tmp_path / "labels" / part
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i in range(8):
            image = np.full((64, 64, 3), 128, np.uint8)
            left, top = rng.integers(0, 40, 2)
            image[top : top + 24, left : left + 24] = rng.integers(0, 255, 3)
            Image.fromarray(image).save(images / f"{i}.png")
            centre = (left + 12) / 64, (top + 12) / 64
            (labels / f"{i}.txt").write_text(f"0 {centre[0]} {centre[1]} 0.375 0.375\n")
    config = tmp_path / "squares.yaml"
    config.write_text(
        f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames: {{0: square}}\n"
    )
    return config


def place_font() -> None:
    """Copy a font to the place where Ultralytics would download one."""
    import matplotlib
    from ultralytics.utils import USER_CONFIG_DIR

    font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    Path(USER_CONFIG_DIR, "Arial.ttf").write_bytes(font.read_bytes())
