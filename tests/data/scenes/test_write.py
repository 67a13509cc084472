from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import yaml
from PIL import Image

from convattn.data import open_dataset
from convattn.data.scenes import CLASS_NAMES, Scene, make_portrait, make_scene, write_scenes
from convattn.data.scenes.write import WRITERS
from convattn.data.source import Targets

COUNT, VAL, SIZE = 24, 8, 96
Written = Callable[[str], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Write scenes in a format, once."""
    root = tmp_path_factory.mktemp("scenes")

    def write(format: str) -> Path:
        folder = root / format
        if not folder.exists():
            write_scenes(folder, format, count=COUNT, val=VAL, size=SIZE)
        return folder

    return write


def scene(number: int, held_out: bool, crowds: bool = False) -> Scene:
    return make_scene(number, size=SIZE, held_out=held_out, crowds=crowds)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def is_near(path: Path, image: np.ndarray) -> bool:
    """Whether a JPEG file shows an image."""
    return bool(np.abs(pixels(path).astype(int) - image).mean() < 12)


def parts() -> list[tuple[str, int, bool]]:
    return [("train", COUNT, False), ("val", VAL, True)]


def test_coco_has_the_objects_of_every_scene(written: Written) -> None:
    from pycocotools.coco import COCO

    folder, ids = written("coco"), []
    kinds = set()
    for part, count, held_out in parts():
        coco = COCO(folder / "annotations" / f"instances_{part}2017.json")
        assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == list(CLASS_NAMES)
        assert len(coco.imgs) == count
        for number, image in enumerate(coco.imgs.values()):
            ids.append(image["id"])
            expected = scene(number, held_out, crowds=True)
            assert (image["height"], image["width"]) == (SIZE, SIZE)
            assert is_near(folder / f"{part}2017" / image["file_name"], expected.image)
            entries = coco.imgToAnns[image["id"]]
            assert len(entries) == len(expected.objects)
            for entry, thing in zip(entries, expected.objects, strict=True):
                x, y, width, height = entry["bbox"]
                assert (x, y, x + width, y + height) == thing.box
                assert coco.cats[entry["category_id"]]["name"] == thing.name
                assert entry["iscrowd"] == thing.crowd
                assert entry["area"] == thing.area
                mask = coco.annToMask(entry).astype(bool)
                assert (mask & thing.mask).sum() / (mask | thing.mask).sum() > 0.8
                shape = entry["segmentation"]
                kinds.add("polygons" if isinstance(shape, list) else type(shape["counts"]))
    assert len(set(ids)) == COUNT + VAL
    assert kinds == {"polygons", list, str}


def test_ids_of_coco_have_gaps(written: Written) -> None:
    path = written("coco") / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for entries in (content["categories"], content["images"], content["annotations"]):
        steps = np.diff([entry["id"] for entry in entries])
        assert steps.min() > 0
        assert steps.max() > 1


def test_yolo_has_a_polygon_for_each_object(written: Written) -> None:
    from pycocotools import mask as coco

    folder = written("yolo")
    names = yaml.safe_load((folder / "data.yaml").read_text())["names"]
    assert [names[number] for number in range(len(names))] == list(CLASS_NAMES)
    for part, count, held_out in parts():
        assert len(list((folder / "images" / part).iterdir())) == count
        for number in range(count):
            expected = scene(number, held_out)
            assert is_near(folder / "images" / part / f"{number:06}.jpg", expected.image)
            lines = (folder / "labels" / part / f"{number:06}.txt").read_text().splitlines()
            for line, thing in zip(lines, expected.objects, strict=True):
                label, *numbers = line.split()
                assert names[int(label)] == thing.name
                points = [float(number) * SIZE for number in numbers]
                mask = coco.decode(coco.frPyObjects([points], SIZE, SIZE))[..., 0].astype(bool)
                assert (mask & thing.mask).sum() / (mask | thing.mask).sum() > 0.8


def test_voc_has_boxes_from_one_and_masks_with_borders(written: Written) -> None:
    folder, found = written("voc"), []
    for part, count, held_out in parts():
        for task in ("Main", "Segmentation"):
            names = (folder / "ImageSets" / task / f"{part}.txt").read_text().split()
            assert len(names) == count
        for number, name in enumerate(names):
            found.append(name)
            expected = scene(number, held_out)
            assert is_near(folder / "JPEGImages" / f"{name}.jpg", expected.image)
            root = ET.parse(folder / "Annotations" / f"{name}.xml").getroot()
            assert root.findtext("filename") == f"{name}.jpg"
            assert root.findtext("size/width") == root.findtext("size/height") == str(SIZE)
            objects = root.findall("object")
            for element, thing in zip(objects, expected.objects, strict=True):
                assert element.findtext("name") == thing.name
                corners = ("xmin", "ymin", "xmax", "ymax")
                box = [int(element.findtext(f"bndbox/{corner}") or "") for corner in corners]
                assert (box[0] - 1, box[1] - 1, box[2], box[3]) == thing.box
                assert element.findtext("truncated") == str(int(thing.truncated))
                assert element.findtext("difficult") == str(int(thing.visible < 60))
            image = Image.open(folder / "SegmentationClass" / f"{name}.png")
            assert image.mode == "P"
            values, classes = np.asarray(image), expected.class_map()
            labelled = values != 255
            assert (values[labelled] == classes[labelled]).all()
            assert labelled.mean() > 0.7
            assert labelled.all() == (classes == classes[0, 0]).all()
    assert len(set(found)) == COUNT + VAL
    palette = Image.open(folder / "SegmentationClass" / f"{found[0]}.png").getpalette() or []
    assert palette[: 3 * 4] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    assert palette[-3:] == [224, 224, 192]


def test_ade20k_has_no_label_for_clutter(written: Written) -> None:
    folder = written("ade20k")
    rows = (folder / "objectInfo150.txt").read_text().splitlines()[1:]
    names = [row.split("\t")[-1] for row in rows]
    assert names == ["background", *CLASS_NAMES]
    for part, count, held_out in parts():
        place = "validation" if held_out else "training"
        assert len(list((folder / "images" / place).iterdir())) == count
        for number in range(count):
            name, expected = f"ADE_{part}_{number + 1:08}", scene(number, held_out)
            assert is_near(folder / "images" / place / f"{name}.jpg", expected.image)
            values = pixels(folder / "annotations" / place / f"{name}.png")
            assert (values[expected.clutter] == 0).all()
            rest = ~expected.clutter
            assert (values[rest] == 1 + expected.class_map()[rest]).all()


def test_folder_has_a_class_for_each_pixel(written: Written) -> None:
    folder = written("folder")
    assert (folder / "classes.txt").read_text().split() == ["background", *CLASS_NAMES]
    for part, count, held_out in parts():
        assert len(list((folder / "images" / part).iterdir())) == count
        for number in range(count):
            expected = scene(number, held_out)
            assert is_near(folder / "images" / part / f"{number:06}.jpg", expected.image)
            values = pixels(folder / "masks" / part / f"{number:06}.png")
            assert (values == expected.class_map()).all()


def test_classes_is_a_folder_of_classes_with_masks_beside(written: Written) -> None:
    folder = written("classes")
    source = open_dataset(f"folder:{folder / 'images'}")
    assert source.class_names == tuple(sorted(CLASS_NAMES))
    assert (len(source.train), len(source.val)) == (COUNT, VAL)
    assert not source.broken
    path = folder / "images" / "train" / "ring" / "000005.jpg"
    expected = make_portrait(5, CLASS_NAMES.index("ring"), size=SIZE)
    assert is_near(path, expected.image)
    values = pixels(folder / "masks" / "train" / "ring" / "000005.png")
    assert (values == 255 * expected.objects[0].mask).all()
    images, masks = (
        sorted(
            path.relative_to(folder / kind).with_suffix("") for path in (folder / kind).rglob("*.*")
        )
        for kind in ("images", "masks")
    )
    assert images == masks
    assert len(images) == COUNT + VAL


@pytest.mark.parametrize(
    ("name", "targets", "first"),
    [
        ("coco:{}/coco", "instances", "disc"),
        ("yolo:{}/yolo", "instances", "disc"),
        ("voc:{}/voc", "boxes", "ball"),  # by the alphabet: the files have no order
        ("voc:{}/voc", "segments", "background"),
        ("ade20k:{}/ade20k", "segments", "background"),
        ("masks:{}/folder", "segments", "background"),
    ],
)
def test_a_data_set_of_scenes_is_opened_without_problems(
    name: str, targets: Targets, first: str, written: Written
) -> None:
    folder = written(name.rpartition("/")[2])
    source = open_dataset(name.format(folder.parent), targets=targets)
    assert source.class_names[0] == first
    assert set(CLASS_NAMES) == set(source.class_names) - {"background"}
    assert (len(source.train), len(source.val)) == (COUNT, VAL)
    assert not source.problems
    assert not source.broken
    assert not source.notes


@pytest.mark.parametrize("format", WRITERS)
def test_the_same_arguments_write_the_same_files(
    format: str, written: Written, tmp_path: Path
) -> None:
    write_scenes(tmp_path, format, count=COUNT, val=VAL, size=SIZE)  # an empty folder will do
    assert _digests(tmp_path) == _digests(written(format))


def test_more_scenes_begin_with_the_same_scenes(written: Written, tmp_path: Path) -> None:
    write_scenes(tmp_path / "few", "folder", count=3, val=2, size=SIZE)
    few, many = _digests(tmp_path / "few"), _digests(written("folder"))
    assert len(few) == 11
    assert few.items() <= many.items()


def test_another_seed_writes_other_scenes(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_scenes(tmp_path / str(seed), "folder", count=2, val=1, size=64, seed=seed)
    first, second = _digests(tmp_path / "0"), _digests(tmp_path / "1")
    assert {name for name in first if first[name] == second[name]} == {"classes.txt"}


def test_a_folder_with_files_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(
        FileExistsError, match=r"is not empty: it holds mine.txt; name a new folder"
    ):
        write_scenes(tmp_path, count=1, val=1, size=64)
    with pytest.raises(FileExistsError, match="this is a file; name a new folder"):
        write_scenes(tmp_path / "mine.txt", count=1, val=1, size=64)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("mine.txt", "mine")]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        with pytest.raises(ValueError, match="size must be from 64 to"):
            write_scenes(tmp_path / name, count=2, val=1, size=20)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "coca"}, "unknown format 'coca'; did you mean 'coco'?"),
        ({"count": 0}, "count must be from 1 to 10,000,000, got 0"),
        ({"val": 0}, "val must be from 1 to 10,000,000, got 0"),
        ({"seed": -1}, "seed must be from 0 to"),
    ],
)
def test_a_wrong_argument_is_an_error(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        write_scenes(tmp_path / "new", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
