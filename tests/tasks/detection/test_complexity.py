from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import Any

import pytest

from convattn.tasks.detection.complexity import count_detector_macs
from convattn.tasks.detection.models import METHODS

TABLE = Path(__file__).parents[3] / "papers" / "detection.csv"
with TABLE.open(newline="", encoding="utf-8") as _file:
    ROWS = list(csv.DictReader(_file))
SLOW = ("acmix_swin_tiny", "glnet_9g", "glnet_16g")


@functools.cache
def count(method: str, backbone: str, **arguments: Any) -> dict[str, float]:
    parts = count_detector_macs(method, backbone, **arguments)
    return {name: value / 1e9 for name, value in parts.items()}


def total(method: str, backbone: str) -> float:
    """The multiply-adds of a detector; the slow backbone is counted once for all methods."""
    if backbone != "acmix_swin_tiny":
        return sum(count(method, backbone).values())
    same_channels = count(method, "swin_tiny_patch4_window7_224")
    own = count("mask_rcnn", backbone)
    return sum(same_channels.values()) - same_channels["backbone"] + own["backbone"]


def test_table_has_the_published_rows_of_every_method():
    published = [row["method"] for row in ROWS if row["paper_g"]]
    assert [published.count(m) for m in METHODS] == [5, 0, 2, 2]
    assert all(("2111.14556" in row["source"]) == bool(row["paper_g"]) for row in ROWS)
    assert all(("glnet" in row["backbone"]) == (not row["paper_g"]) for row in ROWS)


def test_figures_of_the_table_are_the_papers_to_within_5_percent():
    for row in ROWS:
        if row["paper_g"]:
            assert float(row["counted_g"]) == pytest.approx(float(row["paper_g"]), rel=0.05)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            marks=pytest.mark.slow if row["backbone"] in SLOW else (),
            id=f"{row['method']}-{row['backbone']}",
        )
        for row in ROWS
    ],
)
def test_multiply_adds_are_those_of_the_table(row):
    assert total(row["method"], row["backbone"]) == pytest.approx(float(row["counted_g"]), rel=5e-4)


def test_parts_of_a_two_stage_detector():
    parts = count("mask_rcnn", "glnet_stl")
    channels, cells = 256, [200 * 320, 100 * 160, 50 * 80, 25 * 40, 13 * 20]
    proposals = sum(cells) * channels * (9 * channels + 3 + 12)
    boxes = 1000 * (49 * channels * 1024 + 1024**2 + 1024 * 81 * 5)
    masks = 100 * 14**2 * channels * (4 * 9 * channels + 4 * channels + 4 * 81)
    assert parts["proposals"] == pytest.approx(proposals / 1e9)
    assert parts["boxes"] == pytest.approx(boxes / 1e9)
    assert parts["masks"] == pytest.approx(masks / 1e9)
    widths, sides = (96, 192, 384, 768), cells[:4]
    laterals = sum(n * (c + 9 * channels) * channels for c, n in zip(widths, sides, strict=True))
    assert parts["pyramid"] == pytest.approx(laterals / 1e9)


def test_heads_of_a_cascade_count_in_every_stage():
    one, three = count("mask_rcnn", "glnet_stl"), count("cascade_mask_rcnn", "glnet_stl")
    assert three["masks"] == pytest.approx(3 * one["masks"])
    linear = count("cascade_mask_rcnn", "glnet_stl", box_head="linear")
    assert linear["boxes"] < 3 * one["boxes"] < three["boxes"] / 5


def test_size_classes_and_widths_are_arguments():
    small = count("faster_rcnn", "glnet_nano", num_classes=3, size=(320, 320), channels=64)
    assert set(small) == {"backbone", "pyramid", "proposals", "boxes"}
    assert sum(small.values()) < 6
