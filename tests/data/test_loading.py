from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from convattn.data import (
    BROKEN,
    PADDING,
    READABLE,
    Augment,
    Batch,
    FileImages,
    ImageOnly,
    Joined,
    Preprocess,
    default_workers,
    eval_loader,
    eval_transform,
    train_loader,
    train_transform,
)
from convattn.data.loading import EpochSampler, SampleKey
from convattn.data.source import ArrayImages
from tests.data.class_folders import write_broken, write_image

PREPROCESS = Preprocess(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
TRANSFORM = ImageOnly(
    train_transform(PREPROCESS, Augment(auto_augment="rand-m9-inc1", erasing=0.5))
)
EVALUATION = ImageOnly(eval_transform(PREPROCESS))


def images(count: int = 20) -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 255, (count, 8, 8), dtype=np.uint8)
    return ArrayImages(pixels, list(range(count)))


def batches(**arguments: object) -> list[Batch]:
    defaults = {"batch_size": 4, "seed": 3}
    return list(train_loader(images(), TRANSFORM, **{**defaults, **arguments}))  # type: ignore[arg-type]


def pixels(found: list[Batch]) -> torch.Tensor:
    return torch.cat([batch["image"] for batch in found])


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    torch.testing.assert_close(pixels(batches()), pixels(batches(workers=2)), rtol=0, atol=0)


def test_a_resumed_epoch_has_the_batches_that_were_left() -> None:
    rest = batches(epoch=2, batches_done=3)
    torch.testing.assert_close(pixels(rest), pixels(batches(epoch=2)[3:]), rtol=0, atol=0)


def test_batches_are_skipped_in_the_first_epoch_alone() -> None:
    loader = train_loader(images(), TRANSFORM, batch_size=4, epoch=2, batches_done=3)
    assert len(list(loader)) == 2
    loader.sampler.set_epoch(3)  # type: ignore[attr-defined]
    assert len(list(loader)) == 5
    assert len(loader) == 5  # what a progress bar counts to


def test_the_order_depends_on_epoch_and_seed() -> None:
    orders = {tuple(torch.cat([b["index"] for b in batches(epoch=e)]).tolist()) for e in range(3)}
    orders.add(tuple(torch.cat([b["index"] for b in batches(seed=4)]).tolist()))
    assert len(orders) == 4


def test_the_augmentation_of_an_image_depends_on_the_epoch() -> None:
    def first_image(epoch: int) -> torch.Tensor:
        found = batches(epoch=epoch)
        number = torch.cat([batch["index"] for batch in found]).tolist().index(0)
        return pixels(found)[number]

    assert not torch.equal(first_image(0), first_image(1))
    torch.testing.assert_close(first_image(1), first_image(1), rtol=0, atol=0)


def test_two_epochs_have_different_seeds() -> None:
    seeds = [[key.seed for key in EpochSampler(5, shuffle=True, epoch=e)] for e in range(2)]
    assert not set(seeds[0]) & set(seeds[1])


def test_an_epoch_has_every_image_once() -> None:
    found = torch.cat([batch["index"] for batch in batches()])
    assert sorted(found.tolist()) == list(range(20))


def test_training_skips_the_last_incomplete_batch() -> None:
    assert [len(batch["target"]) for batch in batches(batch_size=6)] == [6, 6, 6]


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    assert [len(batch["target"]) for batch in batches(batch_size=64)] == [20]


def test_loading_keeps_the_state_of_the_random_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), np.random.random(), random.random()

    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    undisturbed = draw()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    batches()
    assert draw() == undisturbed


def test_each_process_loads_its_own_part_of_an_epoch() -> None:
    parts = [torch.cat([b["index"] for b in batches(rank=r, world_size=2)]) for r in range(2)]
    together = torch.cat(parts).tolist()
    assert len(together) == 16  # two batches of four each
    assert len(set(together)) == 16


def test_more_processes_than_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="20 images cannot be shared among 21 processes"):
        batches(world_size=21)


def test_repeated_augmentation_repeats_fewer_images() -> None:
    sampler = EpochSampler(30, shuffle=True, repeats=3)
    counts = Counter(key.number for key in sampler)
    assert len(counts) == 10
    assert set(counts.values()) == {3}
    seeds = [key.seed for key in sampler]
    assert len(set(seeds)) == 30


def test_evaluation_loads_every_image_once_in_order() -> None:
    found: list[Batch] = []
    for rank in range(3):
        found += eval_loader(images(), EVALUATION, batch_size=4, rank=rank, world_size=3)
    status = torch.cat([batch["status"] for batch in found])
    index = torch.cat([batch["index"] for batch in found])
    assert sorted(index[status == READABLE].tolist()) == list(range(20))
    assert (status == PADDING).sum() == 1


def test_a_broken_image_is_replaced_and_has_the_status_broken(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", seed=i) for i in range(3)]
    write_broken(paths[1])
    broken = FileImages([str(path) for path in paths], [0, 1, 2])
    (batch,) = eval_loader(broken, EVALUATION, batch_size=3)
    assert batch["status"].tolist() == [READABLE, BROKEN, READABLE]
    assert batch["index"].tolist() == [0, 1, 2]
    assert batch["target"].tolist() == [0, 2, 2]
    torch.testing.assert_close(batch["image"][1], batch["image"][2])


def test_joined_sets_are_concatenated() -> None:
    both = Joined(images(3), images(2))
    assert len(both) == 5
    assert [both.label(i) for i in range(5)] == [0, 1, 2, 0, 1]
    assert both.image(3).tobytes() == images(2).image(0).tobytes()


def test_images_in_memory_have_no_workers_by_default(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    assert default_workers(images()) == 0
    assert default_workers(FileImages([str(path)], [0])) >= 1


def test_the_sampler_yields_sample_keys() -> None:
    sampler = EpochSampler(3, shuffle=False, world_size=2)
    assert list(sampler) == [SampleKey(0), SampleKey(2)]


@pytest.mark.parametrize("size", [0, -3])
def test_a_wrong_batch_size_is_named(size: int) -> None:
    for loader in (train_loader, eval_loader):
        with pytest.raises(ValueError, match=rf"batch_size must be at least 1, got {size}"):
            loader(ArrayImages(np.zeros((4, 4, 4), np.uint8), [0] * 4), None, batch_size=size)  # type: ignore[arg-type]
