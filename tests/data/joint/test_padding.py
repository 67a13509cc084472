"""Batches of images of several sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.tv_tensors import Mask

from convattn.data import (
    IGNORED,
    PADDING,
    READABLE,
    Sample,
    collate_padded,
    padded_groups,
    padded_size,
    stack_masks,
)


def sample(height: int, width: int, target: Any, index: int = 0, status: int = READABLE) -> Sample:
    image = torch.full((3, height, width), float(index + 1))
    return Sample(image=image, target=target, index=index, status=status, size=(height, width))


def test_images_of_several_sizes_are_padded_on_the_right_and_at_the_bottom() -> None:
    batch = collate_padded([sample(40, 20, {}, 0), sample(10, 70, {}, 1, PADDING)])
    assert batch["image"].shape == (2, 3, 64, 96)
    assert (batch["image"][0, :, :40, :20] == 1).all()
    assert (batch["image"][1, :, :10, :70] == 2).all()
    assert batch["image"].sum() == 3 * (40 * 20 + 2 * 10 * 70)
    assert batch["size"].tolist() == [[40, 20], [10, 70]]
    assert batch["index"].tolist() == [0, 1]
    assert batch["status"].tolist() == [READABLE, PADDING]


def test_the_targets_of_a_padded_batch_are_a_list_of_the_same_objects() -> None:
    targets = [{"labels": torch.zeros(2)}, {"labels": torch.zeros(0)}]
    found = collate_padded([sample(32, 32, target) for target in targets])["target"]
    assert all(a is b for a, b in zip(found, targets, strict=True))


def test_masks_of_the_size_of_the_batch_are_stacked() -> None:
    masks = [Mask(torch.full((32, 64), number, dtype=torch.uint8)) for number in (3, 5)]
    batch = collate_padded([sample(32, 64, mask) for mask in masks])
    assert type(batch["target"]) is Tensor
    assert batch["target"].shape == (2, 32, 64)
    assert batch["target"][:, 0, 0].tolist() == [3, 5]


@pytest.mark.parametrize("size", [(40, 50), (33, 64)])
def test_masks_of_the_original_size_are_left_as_they_are(size: tuple[int, int]) -> None:
    masks = [Mask(torch.zeros(size, dtype=torch.uint8)) for _ in range(2)]
    found = collate_padded([sample(33, 64, mask) for mask in masks])["target"]
    assert all(a is b for a, b in zip(found, masks, strict=True))


def test_stacked_masks_are_padded_with_ignored() -> None:
    masks = [torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(4, 1, dtype=torch.uint8)]
    found = stack_masks(masks, (4, 4))
    assert found.dtype == torch.uint8
    assert (found == IGNORED).sum(dim=(1, 2)).tolist() == [16 - 6, 16 - 4]
    assert (found[0, :2, :3] == 0).all()
    assert torch.equal(stack_masks(found, (4, 4)), found)


def test_padded_sizes_are_multiples_of_32() -> None:
    assert padded_size(1, 32) == (32, 32)
    assert padded_size(33, 800) == (64, 800)


def test_images_of_one_padded_size_are_a_group_without_the_padding_of_the_batch() -> None:
    sizes = [(40, 20), (10, 70), (64, 1)]
    batch = collate_padded([sample(*size, {}, number) for number, size in enumerate(sizes)])
    groups = {
        tuple(group.shape): numbers for numbers, group in padded_groups(batch["image"], sizes)
    }
    assert groups == {(2, 3, 64, 32): [0, 2], (1, 3, 32, 96): [1]}
    [(_, first), _] = padded_groups(batch["image"], sizes)
    assert first[1, :, :, 0].eq(3).all()
    assert first[1, :, :, 1:].eq(0).all()
