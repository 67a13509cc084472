from __future__ import annotations

import numpy as np
import pytest

from convattn.data.scenes import make_scene
from convattn.data.scenes.contours import compressed, find_contours, joined, run_lengths


def drawn(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def filled(polygons: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Return the pixels that pycocotools sees inside polygons."""
    from pycocotools import mask as coco

    parts = coco.frPyObjects([points.ravel().tolist() for points in polygons], *mask.shape)
    return coco.decode(coco.merge(parts)).astype(bool)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


def masks() -> list[np.ndarray]:
    scenes = [make_scene(index, size=128, crowds=True) for index in range(30)]
    return [thing.mask for scene in scenes for thing in scene.objects]


def test_a_rectangle_has_one_contour() -> None:
    mask = np.zeros((20, 30), bool)
    mask[4:14, 5:25] = True
    (contour,) = find_contours(mask)
    assert (filled([contour.points], mask) == mask).all()
    assert len(contour.points) == 4
    assert contour.area == 2 * mask.sum()


def test_a_hole_and_a_second_part_have_contours_of_their_own() -> None:
    mask = np.zeros((30, 60), bool)
    mask[2:28, 2:28] = mask[5:20, 35:55] = True
    mask[8:20, 8:20] = False
    assert sorted(np.sign(c.area) for c in find_contours(mask)) == [-1, 1, 1]


def test_pixels_that_touch_at_a_corner_are_parts_of_their_own() -> None:
    mask = np.kron(drawn("#.", ".#"), np.ones((6, 6), bool)).astype(bool)
    assert [contour.area > 0 for contour in find_contours(mask)] == [True, True]


def test_holes_that_touch_at_a_corner_leave_the_mask_in_one_part() -> None:
    mask = np.kron(drawn("####", "#.##", "##.#", "####"), np.ones((6, 6), bool)).astype(bool)
    assert sorted(np.sign(c.area) for c in find_contours(mask)) in ([-1, -1, 1], [-1, 1])
    assert overlap(filled([joined(find_contours(mask))], mask), mask) > 0.93


def test_a_single_pixel_has_a_contour() -> None:
    (contour,) = find_contours(drawn("...", ".#.", "..."))
    assert contour.points.tolist() == [[1, 1], [2, 1], [2, 2], [1, 2]]


def test_an_empty_mask_has_no_contour() -> None:
    assert find_contours(np.zeros((5, 5), bool)) == []


def test_one_polygon_fills_every_mask_of_a_scene() -> None:
    for mask in masks():
        assert overlap(filled([joined(find_contours(mask))], mask), mask) > 0.85


def test_polygons_have_few_points() -> None:
    counts = [len(contour.points) for mask in masks() for contour in find_contours(mask)]
    assert np.mean(counts) < 40
    assert min(counts) >= 3


@pytest.mark.parametrize("first", [False, True])
def test_run_lengths_are_those_of_pycocotools(first: bool) -> None:
    from pycocotools import mask as coco

    random = np.random.default_rng(0).integers(2, size=(37, 61)).astype(bool)
    random[0, 0] = first
    full = np.full((500, 500), first)
    for mask in [*masks(), random, full]:
        runs = run_lengths(mask)
        assert sum(runs) == mask.size
        expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert compressed(runs) == expected
