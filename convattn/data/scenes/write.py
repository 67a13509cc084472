"""Scenes as a data set on disk, in any of the formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from convattn.data.scenes.coco import write_coco
from convattn.data.scenes.folder import filling
from convattn.data.scenes.make import check_number, make_portrait, make_scene
from convattn.data.scenes.scene import CLASS_NAMES, Scene
from convattn.data.scenes.segments import write_ade20k, write_classes, write_folder
from convattn.data.scenes.voc import write_voc
from convattn.data.scenes.yolo import write_yolo
from convattn.names import check_choice
from convattn.progress import Progress

MOST = 10_000_000  # scenes of a part
_Write = Callable[[Path, str, Iterable[Scene]], None]
WRITERS: Mapping[str, _Write] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "ade20k": write_ade20k,
    "folder": write_folder,
    "classes": write_classes,
}


def write_scenes(
    folder: str | Path,
    format: str = "coco",
    *,
    count: int = 400,
    val: int = 100,
    size: int = 192,
    seed: int = 0,
    easy: bool = False,
) -> None:
    """Write scenes as a data set.

    Args:
        folder: a new or empty folder.
        format: "coco", "yolo", "voc", "ade20k", "folder" (masks: a class for each pixel) or
            "classes" (one object in each picture).
        count: of training pictures.
        val: of pictures held out; they lie over other photographs.
        size: width and height.
        seed: other seeds give other scenes.
        easy: whether scenes have few and large objects, as `make_scene`; not for "classes".

    Raises:
        FileExistsError: the folder has files already.
        ValueError: the format is unknown, or a number is out of range.
    """
    check_choice("format", format, WRITERS)
    check_number("count", count, 1, MOST)
    check_number("val", val, 1, MOST)
    with filling(Path(folder)) as hidden, Progress("writing scenes", count + val) as progress:
        for part, number in (("train", count), ("val", val)):
            make = partial(_make, format, size=size, seed=seed, held_out=part == "val", easy=easy)
            WRITERS[format](hidden, part, _counted(map(make, range(number)), progress))


def _make(format: str, index: int, *, size: int, seed: int, held_out: bool, easy: bool) -> Scene:
    """Make one scene for a format."""
    if format == "classes":
        label = index % len(CLASS_NAMES)
        return make_portrait(index, label, size=size, seed=seed, held_out=held_out)
    crowds = format == "coco"
    return make_scene(index, size=size, seed=seed, held_out=held_out, crowds=crowds, easy=easy)


def _counted(scenes: Iterable[Scene], progress: Progress) -> Iterator[Scene]:
    for scene in scenes:
        yield scene
        progress.advance()
