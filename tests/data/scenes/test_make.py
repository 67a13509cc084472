from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convattn.data.scenes import CLASS_NAMES, Scene, make_portrait, make_scene
from convattn.data.scenes.backgrounds import HELD_OUT, TRAINING, photograph


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(index, size=128, crowds=True) for index in range(120)]


def digest(scene: Scene) -> str:
    found = hashlib.sha256(scene.image.tobytes())
    found.update(scene.class_map().tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(
    ("index", "held_out", "expected"),
    [
        (1, False, "923c76788081a205"),
        (2, False, "55b97a094b0ff095"),
        (3, True, "43285c11c2e99e00"),
        (6, True, "b88ea87961e3cfe2"),
    ],
)
def test_a_scene_has_the_same_pixels_on_every_machine(
    index: int, held_out: bool, expected: str
) -> None:
    assert digest(make_scene(index, held_out=held_out)) == expected


def test_a_scene_depends_on_each_argument() -> None:
    others = [
        make_scene(4),
        make_scene(3, seed=1),
        make_scene(3, held_out=True),
        make_scene(3, size=200),
        make_scene(3, easy=True),
        make_portrait(3, 0),
    ]
    assert len({digest(scene) for scene in [make_scene(3), *others]}) == 7
    assert digest(make_scene(3)) == digest(make_scene(3))


def test_a_scene_holds_pixels_and_disjoint_masks(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (128, 128, 3)
        assert scene.image.dtype == np.uint8
        masks = np.array([thing.mask for thing in scene.objects] + [scene.clutter])
        assert masks.dtype == bool
        assert masks.sum(0).max() <= 1
        for thing in scene.objects:
            x1, y1, x2, y2 = thing.box
            assert thing.mask[y1:y2, x1:x2].sum() == thing.area > 0
            assert thing.mask[y1].any()
            assert thing.mask[y2 - 1].any()
            assert thing.mask[:, x1].any()
            assert thing.mask[:, x2 - 1].any()


def test_the_class_map_has_the_class_of_each_object(scenes: list[Scene]) -> None:
    for scene in scenes:
        found = scene.class_map()
        assert (found[scene.clutter] == 0).all()
        for thing in scene.objects:
            assert (found[thing.mask] == 1 + CLASS_NAMES.index(thing.name)).all()
        assert (found > 0).sum() == sum(thing.area for thing in scene.objects)


def test_scenes_have_all_that_makes_them_hard(scenes: list[Scene]) -> None:
    objects = [thing for scene in scenes for thing in scene.objects]
    assert {thing.name for thing in objects} == set(CLASS_NAMES)
    assert any(not scene.objects for scene in scenes)
    assert any(scene.clutter.any() for scene in scenes)
    assert any(45 <= thing.visible < 70 for thing in objects)
    assert any(thing.truncated for thing in objects)
    assert any(thing.crowd for thing in objects)
    assert min(thing.visible for thing in objects) >= 44
    assert max(len(scene.objects) for scene in scenes) >= 6
    sides = [thing.box[2] - thing.box[0] for thing in objects if not thing.truncated]
    assert max(sides) > 3 * min(sides)


def test_crowds_are_made_on_demand() -> None:
    scenes = [make_scene(index, size=64) for index in range(60)]
    assert not any(thing.crowd for scene in scenes for thing in scene.objects)


def test_colour_alone_does_not_tell_the_class() -> None:
    """The nearest mean colour of a class is right less often than every second time."""
    objects = [
        (scene.image[thing.mask].mean(0), thing.label)
        for scene in (make_scene(index, size=96) for index in range(300))
        for thing in scene.objects
    ]
    colors = np.array([color for color, _ in objects])
    labels = np.array([label for _, label in objects])
    half = len(labels) // 2
    means = np.array([colors[:half][labels[:half] == k].mean(0) for k in range(8)])
    nearest = ((colors[half:, None] - means) ** 2).sum(2).argmin(1)
    assert (nearest == labels[half:]).mean() < 0.5


def test_most_bounds_the_number_of_objects() -> None:
    assert max(len(make_scene(index, size=64, most=1).objects) for index in range(30)) == 1


def test_no_photograph_is_in_both_parts() -> None:
    assert not {Path(name).stem for name in TRAINING} & {Path(name).stem for name in HELD_OUT}
    assert "skimage/data/motorcycle_right.png" not in HELD_OUT  # the other eye of a stereo pair


@pytest.mark.parametrize("name", [*TRAINING, *HELD_OUT])
def test_every_photograph_is_installed(name: str) -> None:
    assert min(photograph(name).shape[:2]) >= 300


def test_photographs_that_are_not_installed_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'convattn\[train\]'") as caught:
        photograph.__wrapped__("skimage/data/astronaut.png")
    assert caught.value.name == "skimage"
    with pytest.raises(FileNotFoundError, match=r"there is no .*gone\.png: install sklearn"):
        photograph("sklearn/gone.png")


def test_a_portrait_shows_one_object_of_its_class() -> None:
    for index in range(24):
        (thing,) = make_portrait(index, index % 8, size=96).objects
        assert thing.label == index % 8
        assert thing.visible == 100
        assert not thing.truncated
        assert thing.area > 96 * 96 // 50


@pytest.mark.parametrize("size", [64, 97, 700])
def test_any_size_can_be_made(size: int) -> None:
    for index in range(4):
        for held_out in (False, True):
            assert make_scene(index, size=size, held_out=held_out).image.shape == (size, size, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 20}, "size must be from 64 to 4,096, got 20"),
        ({"seed": -1}, "seed must be from 0 to"),
        ({"index": -1}, "index must be from 0 to"),
        ({"most": 0}, "most must be from 1 to 50, got 0"),
    ],
)
def test_a_number_out_of_range_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scene(**{"index": 0, **options})
    if "most" not in options:
        with pytest.raises(ValueError, match=message):
            make_portrait(**{"index": 0, "label": 0, **options})


def test_an_unknown_label_of_a_portrait_is_an_error() -> None:
    with pytest.raises(ValueError, match="label must be from 0 to 7, got 8"):
        make_portrait(0, 8)


def test_scenes_are_made_fast() -> None:
    """50 scenes a second; an eighth of that here, since other tests use the processor too."""
    make_scene(0)
    start = time.process_time()
    for index in range(20):
        make_scene(index)
    assert 20 / (time.process_time() - start) > 50 / 8
