"""Batches that depend on the seed and the epoch, not on the number of workers or on a resume."""

from __future__ import annotations

import functools
import itertools
import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from convattn.checks import check_positive
from convattn.data.images import BrokenImageError
from convattn.data.source import ArrayImages, ImageSet
from convattn.data.transforms import Transform
from convattn.data.workers import WorkerCollate, start_worker, stop_signals_blocked

READABLE, BROKEN, PADDING = 0, 1, 2
_TRIES = 20


class SampleKey(NamedTuple):
    """What the sampler asks the dataset for.

    Args:
        number: the number of the image.
        seed: the seed of the augmentation; the first key of a batch seeds the whole batch.
        padding: whether the image repeats another one and must not be counted.
    """

    number: int
    seed: int | None = None
    padding: bool = False


class Sample(TypedDict):
    """One transformed image (C, H, W) and what belongs to it.

    ``target`` is the image's target, ``index`` its number, ``size`` its height and width before the
    transform, and ``status`` is one of READABLE, BROKEN (the file cannot be read: image, target and
    size are those of the next readable image) and PADDING (a repeated image, not to be counted).
    """

    image: Tensor
    target: Any
    index: int
    status: int
    size: tuple[int, int]


class Batch(TypedDict):
    """Samples of one batch: ``index`` and ``status`` have shape (B,), ``size`` has shape (B, 2).

    The collate function decides what ``image`` and ``target`` are; by default images
    (B, C, H, W) and stacked targets (B, ...).
    """

    image: Any
    target: Any
    index: Tensor
    status: Tensor
    size: Tensor


Collate = Callable[[list[Sample]], Batch]


def collate_stacked(samples: list[Sample]) -> Batch:
    """Return a batch of stacked images and stacked targets (numbers or tensors of one shape)."""
    return _collate(samples, _stacked([sample["target"] for sample in samples]))


def collate_lists(samples: list[Sample]) -> Batch:
    """Return a batch whose targets are a list, such as one dict of boxes per image.

    Images of one size are stacked; images of several sizes are a list.
    """
    return _collate(samples, [sample["target"] for sample in samples])


def _collate(samples: list[Sample], target: Any) -> Batch:
    images = [sample["image"] for sample in samples]
    same = len({image.shape for image in images}) == 1
    return Batch(
        image=_stacked(images) if same else images,
        target=target,
        index=torch.tensor([sample["index"] for sample in samples]),
        status=torch.tensor([sample["status"] for sample in samples]),
        size=torch.tensor([sample["size"] for sample in samples]),
    )


class TransformedImages(Dataset[Any]):
    """The transformed images and targets of an `ImageSet`.

    Args:
        images: the images and their targets.
        transform: applied to each image and its target.
    """

    def __init__(self, images: ImageSet, transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[SampleKey]) -> list[Sample]:
        """Load the samples of one batch; the loader gives a whole batch to one process."""
        with _seeded(keys[0].seed):
            return [self._sample(key) for key in keys]

    def _sample(self, key: SampleKey) -> Sample:
        found, status = self._read(key.number)
        image, target = self.transform(found.image, found.target)
        return Sample(
            image=image,
            target=target,
            index=key.number,
            status=PADDING if key.padding else status,
            size=(found.image.height, found.image.width),
        )

    def _read(self, index: int) -> tuple[_Found, int]:
        """Return the image and its status; where it is broken, the next one that can be read."""
        errors: list[BrokenImageError] = []
        for step in range(min(_TRIES, len(self))):
            found = (index + step) % len(self)
            try:
                read = _Found(self.images.image(found), self.images.target(found))
                return read, BROKEN if step else READABLE
            except BrokenImageError as error:
                errors.append(error)
        raise errors[0]


class _Found(NamedTuple):
    image: Image.Image
    target: Any


class EpochSampler(Sampler[SampleKey]):
    """The order of the images of an epoch and the seeds of their augmentations.

    Both are functions of ``seed`` and epoch alone. A training run therefore sees the same batches
    with any number of workers, and a run resumed in the middle of an epoch sees the rest of it.

    Args:
        length: number of images.
        shuffle: True for a new order and new seeds in every epoch. False for the images in order,
            padded with repeated images so that every process gets the same number.
        seed: seed of the order and of the augmentations.
        repeats: how many times an epoch has each of its images, which are 1 / repeats of all
            (repeated augmentation; Hoffer et al. 2020, arXiv 1901.09335).
        rank: number of this process.
        world_size: number of processes, each of which loads its own part of the images.
        epoch: the first epoch.
        skip: how many images of the first epoch are skipped.
    """

    def __init__(
        self,
        length: int,
        *,
        shuffle: bool,
        seed: int = 0,
        repeats: int = 1,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        skip: int = 0,
    ) -> None:
        self.length = length
        self.shuffle = shuffle
        self.seed = seed
        self.repeats = repeats
        self.rank = rank
        self.world_size = world_size
        self.epoch = epoch
        self._skip = {epoch: skip}

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return self.length // self.world_size
        return math.ceil(self.length / self.world_size)

    def __iter__(self) -> Iterator[SampleKey]:
        keys = self._shuffled() if self.shuffle else self._in_order()
        return itertools.islice(keys, self._skip.get(self.epoch, 0), None)

    def _shuffled(self) -> Iterator[SampleKey]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        mine = range(self.rank, len(self) * self.world_size, self.world_size)
        seeds = np.random.default_rng((self.seed, self.epoch, self.rank)).integers(
            2**31, size=len(self)
        )
        for place, seed in zip(mine, seeds, strict=True):
            yield SampleKey(int(order[place // self.repeats]), int(seed))

    def _in_order(self) -> Iterator[SampleKey]:
        for place in range(self.rank, len(self) * self.world_size, self.world_size):
            yield SampleKey(place % self.length, padding=place >= self.length)


def train_loader(
    images: ImageSet,
    transform: Transform,
    *,
    batch_size: int,
    collate: Collate = collate_stacked,
    workers: int = 0,
    pin_memory: bool = False,
    low_priority: bool = False,
    seed: int = 0,
    repeats: int = 1,
    rank: int = 0,
    world_size: int = 1,
    epoch: int = 0,
    batches_done: int = 0,
) -> DataLoader[Batch]:
    """Return shuffled batches of ``batch_size`` images each, or of all images if there are fewer.

    Args:
        images: the training images.
        transform: applied to each image and its target, seeded per batch.
        batch_size: images per batch and process.
        collate: makes a batch of a list of samples.
        workers: number of loading processes; 0 loads in this process.
        pin_memory: whether batches lie in pinned memory, which is copied to a GPU faster.
        low_priority: whether loading processes leave the CPU to a model that computes on it.
        seed: seed of the order and of the augmentations.
        repeats: see `EpochSampler`.
        rank: number of this process.
        world_size: number of processes.
        epoch: the first epoch.
        batches_done: how many batches of the first epoch are skipped.

    Raises:
        ValueError: ``batch_size`` is less than 1, or there are fewer images than processes.
    """
    check_positive("batch_size", batch_size)
    size = min(batch_size, len(images) // world_size)
    if size < 1:
        raise ValueError(f"{len(images)} images cannot be shared among {world_size} processes")
    sampler = EpochSampler(
        len(images),
        shuffle=True,
        seed=seed,
        repeats=repeats,
        rank=rank,
        world_size=world_size,
        epoch=epoch,
        skip=batches_done * size,
    )
    dataset = TransformedImages(images, transform)
    return _loader(dataset, sampler, size, collate, workers, pin_memory, low_priority, True)


def eval_loader(
    images: ImageSet,
    transform: Transform,
    *,
    batch_size: int,
    collate: Collate = collate_stacked,
    workers: int = 0,
    pin_memory: bool = False,
    low_priority: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Batch]:
    """Return batches of all images in order; the arguments are those of `train_loader`."""
    check_positive("batch_size", batch_size)
    sampler = EpochSampler(len(images), shuffle=False, rank=rank, world_size=world_size)
    dataset = TransformedImages(images, transform)
    return _loader(dataset, sampler, batch_size, collate, workers, pin_memory, low_priority, False)


def default_workers(images: ImageSet) -> int:
    """Return the default number of loading processes, 0 for images held in memory."""
    if isinstance(images, ArrayImages):
        return 0
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)


class _Loader(DataLoader[Batch]):
    """A loader whose processes are protected from signals while they start."""

    def __iter__(self) -> Any:
        with stop_signals_blocked() if self.num_workers else nullcontext():
            return super().__iter__()


def _loader(
    dataset: TransformedImages,
    sampler: EpochSampler,
    batch_size: int,
    collate: Collate,
    workers: int,
    pin_memory: bool,
    low_priority: bool,
    drop_last: bool,
) -> DataLoader[Batch]:
    return _Loader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=WorkerCollate(collate),
        worker_init_fn=functools.partial(start_worker, low_priority=low_priority),
        num_workers=workers,
        pin_memory=pin_memory,
        drop_last=drop_last,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # the default one is also the model's
    )


def _stacked(values: list[Any]) -> Any:
    return default_collate(values)  # in a loading process it stacks into shared memory


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed the three global generators, and restore their states at the end."""
    if seed is None:
        yield
        return
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed also seeds the GPU
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
