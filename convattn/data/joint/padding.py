"""Batches of images of several sizes, padded on the right and at the bottom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision import tv_tensors

from convattn.data.loading import Batch, Sample, collate_lists

IGNORED = 255  # class number of mask pixels that no loss and no metric counts, such as padding
PAD_TO = 32  # height and width of a padded batch are multiples of it


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Return height and width rounded up to multiples of `PAD_TO`."""
    return -(-height // PAD_TO) * PAD_TO, -(-width // PAD_TO) * PAD_TO


def padded_groups(
    images: Tensor, sizes: Sequence[tuple[int, int]]
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the images of a batch in groups of one padded size, without further padding.

    What a model computes for an image then does not depend on the other images of the batch.

    Args:
        images: (B, C, H, W), padded on the right and at the bottom.
        sizes: height and width of each image without the padding.

    Yields:
        The numbers of the images of one padded size, and these images.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for number, size in enumerate(sizes):
        groups.setdefault(padded_size(*size), []).append(number)
    for (height, width), numbers in groups.items():
        yield numbers, images[numbers, :, :height, :width]


def pad_to(values: Tensor, size: tuple[int, int], fill: int) -> Tensor:
    """Return values (..., H, W) of a size (height, width), padded on the right and at the bottom.

    Args:
        values: with at most this height and width.
        size: height and width of the result.
        fill: the value of the padding.
    """
    below, behind = (new - old for new, old in zip(size, values.shape[-2:], strict=True))
    return pad(values, [0, behind, 0, below], value=fill) if below or behind else values


def collate_padded(samples: list[Sample]) -> Batch:
    """Return a batch of images that are padded with zeros to one size.

    The size is that of the largest image, rounded up to a multiple of `PAD_TO`. The target is the
    list of the samples' targets; it is a tensor (B, H, W) if each target is a mask of class numbers
    of the size of the padded images, as after the training transform.
    """
    sides = [sample["image"].shape[-2:] for sample in samples]
    height, width = padded_size(max(h for h, _ in sides), max(w for _, w in sides))
    images = [pad_to(sample["image"], (height, width), 0) for sample in samples]
    batch = collate_lists(
        [Sample({**sample, "image": image}) for sample, image in zip(samples, images, strict=True)]
    )
    if all(_is_mask_of(target, (height, width)) for target in batch["target"]):
        batch["target"] = stack_masks(batch["target"], (height, width))
    return batch


def stack_masks(masks: Tensor | Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Return masks of class numbers (H, W) as a tensor (B, H, W), padded with `IGNORED`.

    Args:
        masks: one mask per image, or a tensor (B, H, W), which is padded in the same way.
        size: height and width of the result, at least those of every mask.
    """
    return torch.stack([pad_to(mask.as_subclass(Tensor), size, IGNORED) for mask in masks])


def _is_mask_of(target: Any, size: tuple[int, int]) -> bool:
    return isinstance(target, tv_tensors.Mask) and target.shape == size
