"""Batches of images with any target: what they hold, and which batches a seed gives."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from convattn.data import (
    BROKEN,
    READABLE,
    FileImages,
    ImageSet,
    Joined,
    collate_lists,
    eval_loader,
    train_loader,
)
from convattn.data.images import BrokenImageError
from tests.data.class_folders import write_broken, write_image

# Of the batches below as they have always been: a resumed training depends on them.
DIGEST = "f3ff8c0d3828b27a62806c41083a5aa1f0f3ad021b5b823ce755b322ec72d93e"


class BoxImages(ImageSet):
    """Black images of growing size; image ``index`` has ``index`` boxes; target 2 is unreadable."""

    def __init__(self, sizes: list[tuple[int, int]], broken: int | None = None) -> None:
        self.sizes = sizes
        self.broken = broken

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int) -> Image.Image:
        height, width = self.sizes[index]
        return Image.new("L", (width, height))

    def target(self, index: int) -> dict[str, Tensor]:
        if index == self.broken:
            raise BrokenImageError(f"{index}.xml", "no boxes")
        return {"boxes": torch.full((index, 4), float(index))}


def as_tensor(image: Image.Image, target: Any) -> tuple[Tensor, Any]:
    return torch.from_numpy(np.array(image))[None].float(), target


def draw(image: Image.Image, target: Any) -> tuple[Tensor, Any]:
    """Return the first pixel and a number of each random generator."""
    numbers = [random.random(), np.random.random(), torch.rand(()).item()]
    return torch.tensor([first_pixel(image), *numbers], dtype=torch.float64), target


def only_pixel(image: Image.Image, target: Any) -> tuple[Tensor, Any]:
    return torch.tensor([first_pixel(image)], dtype=torch.float64), target


def first_pixel(image: Image.Image) -> float:
    return float(np.asarray(image).reshape(-1)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_of_a_seed_never_change(tmp_path: Path, workers: int) -> None:
    paths = [write_image(tmp_path / f"{i}.png", seed=i) for i in range(11)]
    write_broken(paths[4])
    images = FileImages([str(path) for path in paths], list(range(11)))
    digest = hashlib.sha256()
    common: dict[str, Any] = {"seed": 5, "workers": workers}
    for loader in (
        train_loader(images, draw, batch_size=3, epoch=2, batches_done=1, **common),
        train_loader(images, draw, batch_size=2, repeats=2, rank=1, world_size=2, **common),
        eval_loader(images, only_pixel, batch_size=4, rank=1, world_size=2),
    ):
        for batch in loader:
            for part in (batch["image"], batch["target"], batch["index"], batch["status"]):
                digest.update(part.numpy().tobytes())
    assert digest.hexdigest() == DIGEST


def test_a_batch_holds_the_sizes_before_the_transform(tmp_path: Path) -> None:
    Image.new("L", (7, 5)).save(tmp_path / "wide.png")
    Image.new("L", (5, 7)).save(tmp_path / "high.png")
    images = FileImages([str(tmp_path / name) for name in ("wide.png", "high.png")], [0, 1])
    (batch,) = eval_loader(images, only_pixel, batch_size=2)
    assert batch["size"].tolist() == [[5, 7], [7, 5]]
    assert batch["size"].dtype == torch.int64


def test_the_target_of_a_class_is_its_number() -> None:
    images = FileImages(["a.png", "b.png"], [4, 2])
    assert [images.target(0), images.target(1)] == [4, 2]


def test_joined_sets_give_the_targets_of_their_parts() -> None:
    both = Joined(FileImages(["a.png"], [3]), BoxImages([(4, 4), (4, 4)]))
    assert both.target(0) == 3
    assert both.target(2)["boxes"].shape == (1, 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_targets_of_several_lengths_are_a_list(workers: int) -> None:
    images = BoxImages([(4, 6)] * 3)
    loader = eval_loader(images, as_tensor, batch_size=3, collate=collate_lists, workers=workers)
    (batch,) = loader
    assert batch["image"].shape == (3, 1, 4, 6)
    assert [len(target["boxes"]) for target in batch["target"]] == [0, 1, 2]


def test_images_of_several_sizes_are_a_list() -> None:
    images = BoxImages([(4, 6), (6, 4)])
    (batch,) = train_loader(images, as_tensor, batch_size=2, collate=collate_lists)
    shapes = dict(zip(batch["index"].tolist(), batch["image"], strict=True))
    assert shapes[0].shape == (1, 4, 6)
    assert shapes[1].shape == (1, 6, 4)


def test_an_image_whose_target_cannot_be_read_is_replaced() -> None:
    images = BoxImages([(4, 4), (5, 5), (6, 6), (7, 7)], broken=2)
    (batch,) = eval_loader(images, as_tensor, batch_size=4, collate=collate_lists)
    assert batch["status"].tolist() == [READABLE, READABLE, BROKEN, READABLE]
    assert [len(target["boxes"]) for target in batch["target"]] == [0, 1, 3, 3]
    assert batch["size"].tolist() == [[4, 4], [5, 5], [7, 7], [7, 7]]


def test_stacked_targets_may_be_masks() -> None:
    class MaskImages(BoxImages):
        def target(self, index: int) -> Any:
            return torch.full((4, 6), index)

    (batch,) = eval_loader(MaskImages([(4, 6)] * 2), as_tensor, batch_size=2)
    assert batch["target"].shape == (2, 4, 6)
    assert batch["target"][1].unique().tolist() == [1]
