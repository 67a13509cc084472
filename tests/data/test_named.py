"""Data sets by name: which targets a format has, and what the messages say of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.ops import masks_to_boxes

from convattn.data import DataSource, Targets, offered_targets, open_dataset
from convattn.data.scenes import write_scenes
from tests.data.class_folders import write_classes


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("voc:x", "instances", "voc: has no masks of single objects; .* coco: or yolo: has them"),
        ("folder:x", "boxes", "folder: has no boxes of objects; .* coco: or yolo: or voc: has"),
        ("coco:x", "classes", r"coco: has no class for a whole image; .* folder: or timm: has .*"),
        ("coco:x", "segments", "coco: has no class for each pixel; .* voc: or ade20k: or masks:"),
        ("digits", "boxes", "digits: has no boxes of objects"),
        ("coco:x", "box", "unknown targets 'box'; did you mean 'boxes'?"),
        ("coco", "boxes", "unknown data 'coco'. Known: digits, folder:PATH"),
        ("coco:", "boxes", "unknown data 'coco:'"),
        ("voc:x", "boxes", "there is no folder x"),
        ("yolo:x", "boxes", "there is no file x"),
        ("coco:x", "boxes", "there is no folder x"),
    ],
)
def test_what_a_format_lacks_is_named(name: str, targets: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_dataset(name, targets=targets)  # type: ignore[arg-type]


def test_the_message_says_what_the_targets_of_the_format_are_for() -> None:
    with pytest.raises(ValueError, match="coco: has targets='boxes' for detection"):
        open_dataset("coco:x")


def test_files_of_annotations_are_for_coco_alone(tmp_path: Path) -> None:
    write_classes(tmp_path, {"blue": 3, "red": 3})
    with pytest.raises(ValueError, match="json= and images= are for coco:DIR"):
        open_dataset(f"folder:{tmp_path}", json="a.json")
    with pytest.raises(ValueError, match="json= and images= are for coco:DIR; timm:torch/cifar10"):
        open_dataset("timm:torch/cifar10", root=tmp_path, json="a.json")


def test_the_targets_of_each_format() -> None:
    assert offered_targets("coco:x") == ("boxes", "instances")
    assert offered_targets("digits") == offered_targets("timm:x") == ("classes",)
    assert offered_targets("nothing") == ()


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, DataSource]:
    """Generated scenes in each format of objects."""
    monkeypatch.setenv("CONVATTN_CACHE", str(tmp_path / "cache"))
    kinds: dict[str, Targets] = {"coco": "instances", "voc": "boxes", "yolo": "boxes"}
    for name in kinds:
        write_scenes(tmp_path / name, name, count=3, val=1, size=64, seed=1)
    return {name: open_dataset(f"{name}:{tmp_path / name}", targets=t) for name, t in kinds.items()}


def test_generated_scenes_have_no_problems(scenes: dict[str, DataSource]) -> None:
    for source in scenes.values():
        assert source.problems == ()
        assert source.notes == ()
        assert (len(source.train), len(source.val), source.split_here) == (3, 1, False)


def test_the_boxes_of_an_image_are_the_same_in_two_formats(scenes: dict[str, DataSource]) -> None:
    voc, yolo = scenes["voc"], scenes["yolo"]
    for index in range(3):
        found, other = voc.train.target(index), yolo.train.target(index)
        assert torch.allclose(found["boxes"], other["boxes"], atol=1e-3)
        names = [voc.class_names[number] for number in found["labels"]]
        assert names == [yolo.class_names[number] for number in other["labels"]]


def test_masks_fill_their_boxes(scenes: dict[str, DataSource]) -> None:
    target = scenes["coco"].train.target(0)
    filled = masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1])
    assert torch.allclose(filled, target["boxes"], atol=2)  # the polygons are approximate
