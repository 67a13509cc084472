from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.cli.data_pages import (
    ClassCounts,
    Shown,
    check_folder,
    chosen,
    count_classes,
    plain,
    write_pages,
)
from convattn.data import BrokenImageError, ImageSet

NAMES = ("cat", "dog", "a\x1bb")


class Objects(ImageSet):
    """Images with one object each, of the classes in turn; every tenth image is broken."""

    def __init__(self, length: int, masks: bool = False) -> None:
        self.length = length
        self.masks = masks

    def __len__(self) -> int:
        return self.length

    def image(self, index: int) -> Image.Image:
        if index % 10 == 9:
            raise BrokenImageError(self.path(index), "the file is cut off")
        return Image.new("RGB", (60, 40), (index % 256, 90, 90))

    def target(self, index: int) -> Any:
        boxes = torch.tensor([[5.0, 5.0, 40.0, 30.0]])
        target = {"boxes": boxes, "labels": torch.tensor([index % 2]), "crowd": torch.tensor([0])}
        if self.masks:
            target["masks"] = torch.ones(1, 40, 60, dtype=torch.uint8)
        return target

    def path(self, index: int) -> str:
        return f"/data/train/{index}.jpg"


class Segments(Objects):
    def target(self, index: int) -> Any:
        if index % 10 == 9:
            raise BrokenImageError(self.path(index), "the mask is missing")
        mask = torch.zeros(40, 60, dtype=torch.uint8)
        mask[:, 45:] = 2
        mask[0] = 255
        return mask


@pytest.mark.parametrize("images", [Objects(20), Objects(20, masks=True), Segments(20)])
def test_pages_have_sixteen_images_each_and_broken_ones_leave_a_grey_picture(
    tmp_path: Path, images: ImageSet
) -> None:
    paths, count = write_pages(tmp_path, range(20), plain(images), NAMES)
    assert count == 20
    assert [path.name for path in paths] == ["convattn-page-01.png", "convattn-page-02.png"]
    first, second = (np.asarray(Image.open(path)) for path in paths)
    assert first.shape[1] == second.shape[1] == 12 + 4 * (384 + 12)
    assert first.shape[0] > 2 * second.shape[0]


def test_surplus_pages_of_an_earlier_call_are_removed(tmp_path: Path) -> None:
    write_pages(tmp_path, range(20), plain(Objects(20)), NAMES)
    paths, _ = write_pages(tmp_path, range(3), plain(Objects(20)), NAMES)
    assert list(tmp_path.iterdir()) == paths


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    check_folder("--out", tmp_path / "new")
    (tmp_path / "new" / "convattn-page-01.png").touch()
    check_folder("--out", tmp_path / "new")
    with pytest.raises(ValueError, match=r"--out .* holds other files, such as new"):
        check_folder("--out", tmp_path)


def test_an_image_without_a_target_is_shown_alone(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 40), "white")
    paths, _ = write_pages(tmp_path, [0], lambda _: Shown(image, None, ("a.jpg",)), NAMES)
    page = Image.open(paths[0])
    assert page.getpixel((12 + 100, 12 + 100)) == (255, 255, 255)


def test_the_table_counts_objects_and_images_of_every_class() -> None:
    counts, note = count_classes(Objects(9), NAMES)
    assert counts.table().splitlines() == [
        "class   images  objects",
        "cat          5        5",
        "dog          4        4",
        r"a\x1bb       0        0",
    ]
    assert note == "counted in 9 images"


def test_the_table_of_masks_has_shares_of_the_pixels_that_have_a_class() -> None:
    counts, _ = count_classes(Segments(20), NAMES)
    assert counts.table().splitlines()[1].split() == ["cat", "18", "75.00%"]
    assert counts.table().splitlines()[3].split() == [r"a\x1bb", "18", "25.00%"]


def test_the_table_of_classes_counts_images() -> None:
    counts = ClassCounts(NAMES)
    for label in (0, 0, 1):
        counts.add(label)
    assert counts.table().splitlines()[:2] == ["class   images", "cat          2"]


def test_large_data_sets_are_counted_in_part() -> None:
    counts, note = count_classes(Objects(10_000), NAMES)
    assert counts.images.total() == 2000
    assert note == "counted in 2,000 of 10,000 images, evenly spaced"


def test_images_of_a_class_have_that_class_and_are_always_the_same() -> None:
    numbers = [*chosen(Objects(100), 1, 7)]
    assert len(numbers) == 7
    assert all(number % 2 for number in numbers)
    assert numbers == [*chosen(Objects(100), 1, 7)]
    assert [*chosen(Objects(100), 2, 7)] == []


def test_images_of_all_classes_are_evenly_spaced() -> None:
    assert [*chosen(Objects(100), None, 4)] == [0, 25, 50, 75]
    assert [*chosen(Objects(3), None, 4)] == [0, 1, 2]
