"""A model is evaluated on another part of the data set that it was trained on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from convattn.cli import main
from convattn.data import open_dataset
from convattn.runs.data_record import DataRecord
from convattn.runs.folder import RunFolder
from convattn.runs.weights import save_weights
from convattn.tasks.detection.task import Detection
from convattn.tasks.segmentation.task import Segmentation
from convattn.tasks.table import evaluate
from convattn.training.config import RunConfig, data_options
from convattn.training.task import Task
from tests.tasks.detection.scenes import tiny as tiny_detector
from tests.tasks.detection.scenes import write_scenes
from tests.tasks.segmentation.shapes import CLASSES, Scenes
from tests.tasks.segmentation.shapes import tiny as tiny_segmenter


def write_run(task: type[Task[Any]], config: RunConfig, folder: Path) -> Path:
    """Write the files of a run that an evaluation reads, with a new model."""
    source = open_dataset(config.data, **data_options(config))
    torch.manual_seed(0)
    found = task(config, source).build()
    run = RunFolder(folder)
    run.checkpoints.mkdir(parents=True)
    save_weights(found.model.state_dict(), found.card, run.checkpoints / "best.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": config.data}))
    run.write_data(DataRecord.of(source))
    return folder


def write_masks(root: Path, **parts: int) -> Path:
    """Write as many images with masks in each part."""
    for part, count in parts.items():
        images = Scenes([(64, 48)] * count)
        for kind in ("images", "masks"):
            (root / kind / part).mkdir(parents=True)
        for index in range(count):
            images.image(index).save(root / "images" / part / f"{index}.png")
            Image.fromarray(images.mask(index)).save(root / "masks" / part / f"{index}.png")
    (root / "names.txt").write_text("\n".join(CLASSES))
    return root


def segmenter(root: Path, folder: Path, **changes: Any) -> Path:
    config = tiny_segmenter(data=f"masks:{root}", classes="names.txt", **changes)
    return write_run(Segmentation, config, folder)


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    return write_masks(tmp_path / "masks", train=4, val=2, test=3)


def paths(found: Any) -> list[str]:
    return [Path(row.path).parent.name for row in found.predictions]


@pytest.mark.parametrize("named", [True, False])
def test_a_segmenter_is_evaluated_on_the_test_part(
    named: bool, masks: Path, tmp_path: Path
) -> None:
    run = segmenter(masks, tmp_path / "run")
    data = f"masks:{masks}" if named else None
    found = evaluate(run, data, val_split="test", workers=0, device="cpu")
    assert (found.split, found.images) == ("test", 3)
    assert paths(found) == ["test"] * 3
    assert evaluate(run, data, workers=0, device="cpu").split == "val"


def test_other_classes_are_an_error_with_the_command_to_train_on_them(
    masks: Path, tmp_path: Path
) -> None:
    run = segmenter(masks, tmp_path / "run")
    data = open_dataset(f"masks:{masks}", targets="segments", classes=[*CLASSES, "more"])
    message = "convattn train --method semantic_fpn init=CHECKPOINT"
    with pytest.raises(ValueError, match=message):
        evaluate(run, data, workers=0, device="cpu")


def test_the_part_of_the_run_by_another_name_is_that_of_its_record(
    masks: Path, tmp_path: Path
) -> None:
    run = segmenter(masks, tmp_path / "run")
    (masks / "images" / "val" / "new.png").write_bytes(
        (masks / "images" / "val" / "0.png").read_bytes()
    )
    (masks / "masks" / "val" / "new.png").write_bytes(
        (masks / "masks" / "val" / "0.png").read_bytes()
    )
    found = evaluate(run, val_split="val", workers=0, device="cpu")
    assert (found.split, found.images) == ("val", 2)


def test_the_test_part_of_a_run_that_held_out_images_of_the_training_part(tmp_path: Path) -> None:
    root = write_masks(tmp_path / "masks", train=5, test=2)
    run = segmenter(root, tmp_path / "run")
    assert evaluate(run, workers=0, device="cpu").images == 1
    assert evaluate(run, val_split="validation", workers=0, device="cpu").images == 1
    assert evaluate(run, val_split="test", workers=0, device="cpu").split == "test"
    moved = shutil.move(root, tmp_path / "moved")
    found = evaluate(
        run, f"masks:{moved}", val_split="test", classes="names.txt", workers=0, device="cpu"
    )
    assert (found.split, paths(found)) == ("test", ["test"] * 2)


def test_a_run_that_held_out_the_test_part_names_it(masks: Path, tmp_path: Path) -> None:
    run = segmenter(masks, tmp_path / "run", val_split="test")
    found = evaluate(run, workers=0, device="cpu")
    assert (found.split, paths(found)) == ("test", ["test"] * 3)


def test_the_command_names_the_part(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = segmenter(masks, tmp_path / "run")
    words = ["eval", str(run), "--workers", "0", "--device", "cpu", "val_split=test"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"data      masks:{masks} (test), 3 images"


def test_the_classes_are_those_of_the_run(masks: Path, tmp_path: Path) -> None:
    run = segmenter(masks, tmp_path / "run")
    (masks / "names.txt").write_text("\n".join([*CLASSES[:2], "another thing"]))
    with pytest.raises(ValueError, match="classes that are not in the model's classes: 'another"):
        evaluate(run, val_split="test", workers=0, device="cpu")


def test_a_part_that_is_not_there_is_an_error(masks: Path, tmp_path: Path) -> None:
    run = segmenter(masks, tmp_path / "run")
    with pytest.raises(ValueError, match="no part for val_split=dev; there are 'test', 'train'"):
        evaluate(run, val_split="dev", workers=0, device="cpu")


@pytest.fixture
def detector(tmp_path: Path) -> tuple[Path, Path]:
    """Return the data of a detector, with an annotation file of three more images, and a run."""
    root = write_scenes(tmp_path / "scenes")
    write_scenes(tmp_path / "more", count=2, held_out=3)
    shutil.copytree(tmp_path / "more" / "val2017", root / "others")
    file = tmp_path / "more" / "annotations" / "instances_val2017.json"
    shutil.copy(file, root / "annotations" / "others.json")
    return root, write_run(Detection, tiny_detector(root), tmp_path / "run")


def test_a_detector_is_evaluated_on_another_annotation_file(detector: tuple[Path, Path]) -> None:
    root, run = detector
    file = "annotations/others.json"
    found = evaluate(run, json=file, images="others", workers=0, device="cpu")
    assert (found.split, found.images) == ("others.json", 3)
    assert {Path(row["path"]).parent.name for row in found.predictions} == {"others"}
    assert evaluate(run, f"coco:{root}", workers=0, device="cpu").images == 4


@pytest.mark.parametrize("name", ["coco", "folder", "digits"])
def test_data_without_named_parts_refuses_a_part(name: str, tmp_path: Path) -> None:
    name = name if name == "digits" else f"{name}:{tmp_path}"
    with pytest.raises(ValueError, match=r"val_split=test.*has no parts with names"):
        open_dataset(name, val_split="test", targets="boxes" if "coco" in name else "classes")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("val_spit=test", "unknown setting 'val_spit'; did you mean 'val_split'"),
        ("test", "'test' is no setting: write NAME=VALUE, such as val_split=test"),
        ("ignored=none", "ignored=none must be a whole number"),
    ],
)
def test_a_word_that_is_no_setting_is_one_message(
    word: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    assert main(["eval", str(tmp_path / "run"), word]) == 2
    assert message in capsys.readouterr().err


def test_options_replace_those_of_the_training(masks: Path, tmp_path: Path) -> None:
    run = segmenter(masks, tmp_path / "run")
    mirrored = segmenter(masks, tmp_path / "mirrored", flip=True)
    found, expected = (evaluate(each, workers=0, device="cpu") for each in (run, mirrored))
    chosen = evaluate(run, workers=0, device="cpu", options={"flip": True})
    assert chosen.predictions == expected.predictions != found.predictions
    note = "evaluated with flip=true, in place of the training's settings"
    assert (chosen.notes, found.notes) == ([*found.notes, note], found.notes)
    with pytest.raises(ValueError, match="window has no effect on whole images"):
        evaluate(run, workers=0, device="cpu", options={"window": 32})
    with pytest.raises(ValueError, match="unknown option of segmentation 'mirror'"):
        evaluate(run, workers=0, device="cpu", options={"mirror": True})
