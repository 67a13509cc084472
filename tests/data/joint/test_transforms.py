"""Transforms of images with boxes and masks: a box still surrounds the object it was drawn on."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.tv_tensors import BoundingBoxes, Mask

from convattn.data import (
    IGNORED,
    ImageSet,
    JointAugment,
    Preprocess,
    collate_lists,
    eval_loader,
    joint_eval_transform,
    joint_train_transform,
)

INPUT = Preprocess(
    input_size=(3, 64, 96), mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear"
)
HEIGHT, WIDTH = 100, 120
BOX = (30, 20, 70, 60)  # left, top, right, bottom
STRONG = JointAugment(scale=(0.4, 2.0), hflip=0.5, color_jitter=0.0)
HALF = JointAugment(scale=(0.5, 0.5), hflip=0.0, color_jitter=0.0)
WHITE = 1.0  # normalised: black is -2, the padding 0, white 2


def picture() -> Image.Image:
    """Draw a white rectangle on black."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    left, top, right, bottom = BOX
    pixels[top:bottom, left:right] = 255
    return Image.fromarray(pixels)


def detection(*boxes: tuple[int, int, int, int]) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    values = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": BoundingBoxes(values, format="XYXY", canvas_size=(HEIGHT, WIDTH)),
        "labels": torch.arange(len(boxes)),
        "masks": Mask(masks),
    }


def class_mask() -> Mask:
    classes = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    classes[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 7
    return Mask(classes)


CLASSES = class_mask()


def where(white: Tensor) -> Tensor:
    """Return the box around the true pixels."""
    rows, columns = torch.where(white)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


@pytest.mark.parametrize("seed", range(25))
def test_boxes_and_masks_stay_on_their_object(seed: int) -> None:
    torch.manual_seed(seed)
    image, target = joint_train_transform(INPUT, STRONG)(picture(), detection(BOX))
    assert image.shape[1] <= 64
    assert image.shape[2] <= 96
    assert target["masks"].shape[1:] == image.shape[1:] == target["boxes"].canvas_size
    white = image[0] > WHITE
    if len(target["boxes"]) == 0:
        assert not white.any()
        assert target["labels"].tolist() == []
        return
    box = target["boxes"][0].as_subclass(Tensor)
    torch.testing.assert_close(where(white), box, atol=1, rtol=0)
    torch.testing.assert_close(where(target["masks"][0] == 1), box, atol=1, rtol=0)


def test_an_object_outside_the_crop_is_removed_with_its_label() -> None:
    transform = joint_train_transform(INPUT, JointAugment(scale=(4.0, 4.0), color_jitter=0))
    counts = set()
    for seed in range(30):
        torch.manual_seed(seed)
        _, target = transform(picture(), detection(BOX, (110, 90, 119, 99)))
        lengths = {len(target[name]) for name in ("boxes", "labels", "masks")}
        assert len(lengths) == 1
        counts |= lengths
        boxes = target["boxes"]
        assert boxes.canvas_size == (64, 96)
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 1).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([96, 64])).all()
    assert counts >= {0, 1}


@pytest.mark.parametrize("min_size", [1.0, 30.0])
def test_small_boxes_are_removed(min_size: float) -> None:
    augment = JointAugment(scale=(1.0, 1.0), min_size=min_size)
    _, target = joint_train_transform(INPUT, augment)(picture(), detection(BOX))
    assert len(target["boxes"]) == (1 if min_size == 1 else 0)  # 40 of 100 pixels become 25.6


def test_evaluation_resizes_the_image_to_the_largest_size_that_fits_the_input() -> None:
    image, _ = joint_eval_transform(INPUT)(picture(), None)
    assert image.shape == (3, 64, 77)  # 76.8 pixels are rounded
    assert type(image) is Tensor
    expected = torch.tensor(BOX) * 64 / 100
    expected[0::2] = torch.tensor(BOX)[0::2] * 77 / 120
    torch.testing.assert_close(where(image[0] > WHITE), expected, atol=1, rtol=0)
    assert image[0, 0, 0] == -2


@pytest.mark.parametrize(
    ("sides", "shape"),
    [
        ({"short_side": 50}, (50, 60)),
        ({"long_side": 60}, (50, 60)),
        ({"short_side": 50, "long_side": 54}, (45, 54)),
    ],
)
def test_evaluation_by_the_length_of_a_side(sides: dict[str, Any], shape: tuple[int, int]) -> None:
    image, _ = joint_eval_transform(replace(INPUT, **sides))(picture(), None)
    assert image.shape[1:] == shape


def test_evaluation_leaves_the_target_in_pixels_of_the_original_image() -> None:
    for target in (detection(BOX), detection(), Mask(torch.zeros(HEIGHT, WIDTH)), 3):
        _, found = joint_eval_transform(INPUT)(picture(), target)
        assert found is target


def test_evaluation_normalises_each_channel() -> None:
    colour = Image.new("RGB", (96, 64), (255, 51, 0))
    preprocess = replace(INPUT, mean=(0.5, 0.1, 0.25), std=(0.25, 0.5, 0.125))
    image, _ = joint_eval_transform(preprocess)(colour, None)
    torch.testing.assert_close(image[:, 3, 5], torch.tensor([2.0, 0.2, -2.0]))


def test_an_interpolation_that_tensors_lack_is_named() -> None:
    with pytest.raises(ValueError, match=r"interpolation 'lanczos'.*'bilinear'"):
        joint_eval_transform(replace(INPUT, interpolation="lanczos"))


def test_colour_jitter_changes_the_image_alone() -> None:
    torch.manual_seed(0)
    still = JointAugment(scale=(1.0, 1.0), hflip=0.0, color_jitter=0.9)
    image, target = joint_train_transform(INPUT, still)(picture(), detection(BOX))
    plain, _ = joint_train_transform(INPUT, replace(still, color_jitter=0.0))(
        picture(), detection(BOX)
    )
    assert (image - plain).abs().max() > 0.1
    assert target["boxes"].shape == (1, 4)
    assert target["masks"].unique().tolist() == [0, 1]


def test_a_mask_of_classes_is_resized_cropped_and_flipped_with_its_image() -> None:
    values: set[int] = set()
    for seed in range(10):
        torch.manual_seed(seed)
        image, mask = joint_train_transform(INPUT, JointAugment(color_jitter=0))(picture(), CLASSES)
        assert mask.shape == image.shape[1:] == (64, 96)
        values |= set(mask.unique().tolist())
        assert ((image[0] > WHITE) != (mask == 7)).float().mean() < 0.02
        assert (image[0][mask == IGNORED].abs() < 0.01).all()
    assert values == {0, 7, IGNORED}


def test_an_image_without_objects() -> None:
    image, target = joint_train_transform(INPUT, STRONG)(picture(), detection())
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, *image.shape[1:])


def test_grey_images() -> None:
    grey = Preprocess(input_size=(1, 64, 64), mean=(0.5,), std=(0.5,))
    augment = replace(STRONG, photometric=True, color_jitter=0.4)
    image, mask = joint_train_transform(grey, augment)(picture(), CLASSES)
    assert image.shape == (1, 64, 64)
    assert mask.shape == (64, 64)


def test_evaluation_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    joint_eval_transform(INPUT)(picture(), detection(BOX))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "transform", [joint_eval_transform(INPUT), joint_train_transform(INPUT, STRONG)]
)
def test_worker_processes_can_load_the_transform(transform: Any) -> None:
    image, _ = pickle.loads(pickle.dumps(transform))(picture(), detection(BOX))
    assert image.shape[0] == 3


class OneObject(ImageSet):
    def __len__(self) -> int:
        return 2

    def image(self, index: int) -> Image.Image:
        return picture()

    def target(self, index: int) -> dict[str, Tensor]:
        return detection(*[BOX] * index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_keeps_the_types_of_boxes_and_masks(workers: int) -> None:
    transform = joint_eval_transform(INPUT)
    (batch,) = eval_loader(
        OneObject(), transform, batch_size=2, collate=collate_lists, workers=workers
    )
    assert batch["image"].shape == (2, 3, 64, 77)
    assert batch["size"].tolist() == [[HEIGHT, WIDTH]] * 2
    first, second = batch["target"]
    assert first["boxes"].shape == (0, 4)
    assert isinstance(second["boxes"], BoundingBoxes)
    assert second["boxes"].canvas_size == (HEIGHT, WIDTH)
    assert isinstance(second["masks"], Mask)
    torch.testing.assert_close(second["boxes"], detection(BOX)["boxes"])


def objects(*boxes: tuple[float, ...], **more: Any) -> dict[str, Any]:
    """Return a target with these boxes and other entries."""
    values = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": BoundingBoxes(values, format="XYXY", canvas_size=(HEIGHT, WIDTH)), **more}


def test_a_smaller_mask_lies_on_the_object_of_the_image() -> None:
    square = Preprocess(input_size=(3, 64, 64), mean=(0.0,) * 3, std=(1.0,) * 3)
    still = JointAugment(scale=(1.0, 1.0), hflip=0.0, color_jitter=0.0)
    rows, columns = np.indices((512, 512))
    left = 200 + rows // 64  # eight positions between the pixels of the smaller mask
    white = (columns >= left) & (columns < left + 64)
    image, mask = joint_train_transform(square, still)(
        Image.fromarray(white.astype(np.uint8) * 255).convert("RGB"), Mask(torch.tensor(white))
    )
    middles = []
    for values in (image[0, 4::8], mask[4::8].float()):
        middles.append((values * (torch.arange(64) + 0.5)).sum(1) / values.sum(1))
    assert float((middles[1] - middles[0]).mean()) == pytest.approx(0, abs=0.1)


def test_large_object_numbers_of_a_mask_stay_exact() -> None:
    numbers = torch.full((HEIGHT, WIDTH), 2**24 + 1, dtype=torch.int64)
    _, mask = joint_train_transform(INPUT, HALF)(picture(), Mask(numbers))
    assert mask.unique().tolist() == [IGNORED, 2**24 + 1]


@pytest.mark.parametrize(
    "value",
    [
        {"min_size": -1.0},
        {"min_size": float("nan")},
        {"scale": (0.0, 1.0)},
        {"scale": (2.0, 1.0)},
        {"hflip": 1.5},
        {"short_sides": (480, 0)},
        {"crop_sides": (400,)},
        {"crop_range": (600, 384)},
        {"cat_max_ratio": 0.0},
        {"cat_max_ratio": 75},
    ],
)
def test_a_wrong_setting_is_named(value: dict[str, Any]) -> None:
    (name,) = value
    with pytest.raises(ValueError, match=rf"JointAugment\({name}="):
        JointAugment(**value)


def test_boxes_smaller_than_a_pixel_can_be_kept() -> None:
    augment = JointAugment(scale=(1.0, 1.0), min_size=0.1)
    _, target = joint_train_transform(INPUT, augment)(picture(), objects((10, 10, 10.5, 10.5)))
    assert len(target["boxes"]) == 1


def test_boxes_of_integers_become_exact_floats() -> None:
    target = objects(BOX)
    target["boxes"] = BoundingBoxes(torch.tensor([BOX]), format="XYXY", canvas_size=(HEIGHT, WIDTH))
    found = []
    for value in (target, objects(BOX)):
        torch.manual_seed(0)
        found.append(joint_train_transform(INPUT, HALF)(picture(), value)[1]["boxes"])
    assert found[0].dtype == torch.float32
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.int64])
def test_a_mask_of_any_type_is_padded_with_ignored(dtype: torch.dtype) -> None:
    classes = Mask(torch.zeros(HEIGHT, WIDTH, dtype=dtype))
    _, mask = joint_train_transform(INPUT, HALF)(picture(), classes)
    assert mask.unique().tolist() == [0, IGNORED]


def test_all_entries_of_a_target_stay_in_step_with_the_boxes() -> None:
    outside = (-20, -20, -10, -10)
    target = objects(
        outside,
        BOX,
        labels=np.array([1, 2]),
        names=["a", "b"],
        scores=(0.5, 0.75),
        area=torch.tensor([1.0, 2.0]),
        image_id=torch.tensor([7]),
        file="1.jpg",
        number=3,
    )
    augment = JointAugment(scale=(1.0, 1.0))
    _, found = joint_train_transform(INPUT, augment)(picture(), target)
    assert len(found["boxes"]) == 1
    assert found["labels"].tolist() == [2]
    assert found["names"] == ["b"]
    assert found["scores"] == (0.75,)
    assert found["area"].tolist() == [2]
    assert found["image_id"].tolist() == [7]
    assert (found["file"], found["number"]) == ("1.jpg", 3)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"labels": torch.arange(3)}, r"'labels'.*3 entries.*2 boxes"),
        ({"names": ["a"]}, r"'names'.*1 entry.*2 boxes"),
        ({"masks": Mask(torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8))}, r"'masks'.*1 entry"),
        ({"boxes": torch.zeros(2, 4)}, r"'boxes'.*BoundingBoxes"),
    ],
)
def test_a_target_that_is_out_of_step_names_the_entry(more: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        joint_train_transform(INPUT, STRONG)(picture(), {**objects(BOX, BOX), **more})


def test_a_mask_of_classes_beside_boxes_has_the_size_of_the_image() -> None:
    image, found = joint_train_transform(INPUT, HALF)(picture(), objects(BOX, classes=CLASSES))
    assert found["classes"].shape == image.shape[1:]
    assert found["classes"].unique().tolist() == [0, 7]


def test_the_size_of_the_object_varies_within_the_range_of_scales() -> None:
    augment = JointAugment(scale=(0.5, 1.0), color_jitter=0)
    widths = []
    for seed in range(20):
        torch.manual_seed(seed)
        _, target = joint_train_transform(INPUT, augment)(picture(), objects(BOX))
        widths.append(float(target["boxes"][0, 2] - target["boxes"][0, 0]))
    full = 0.64 * (BOX[2] - BOX[0])
    assert min(widths) >= 0.48 * full
    assert max(widths) <= 1.02 * full
    assert max(widths) - min(widths) > 0.3 * full


def test_boxes_end_at_the_edge_of_the_crop() -> None:
    augment = JointAugment(scale=(2.0, 2.0), hflip=0, color_jitter=0)
    cut = 0
    for seed in range(10):
        torch.manual_seed(seed)
        _, target = joint_train_transform(INPUT, augment)(picture(), objects((0, 0, WIDTH, HEIGHT)))
        (box,) = target["boxes"].tolist()
        cut += box == [0, 0, 96, 64]
    assert cut == 10


def test_a_mask_is_padded_to_a_multiple_of_32() -> None:
    odd = replace(INPUT, input_size=(3, 50, 70))
    image, mask = joint_train_transform(odd, replace(HALF, scale=(2.0, 2.0)))(picture(), CLASSES)
    assert image.shape == (3, 64, 96)
    assert (mask[:50, :70] != IGNORED).all()
    assert (mask == IGNORED).sum() == 64 * 96 - 50 * 70
    assert (image[:, 50:] == 0).all()
    assert (image[:, :, 70:] == 0).all()


def test_multi_scale_training_chooses_the_length_of_the_shorter_side() -> None:
    augment = JointAugment(short_sides=(40, 50, 90), color_jitter=0)
    sizes = set()
    for seed in range(30):
        torch.manual_seed(seed)
        limited = replace(INPUT, short_side=40, long_side=96)
        image, target = joint_train_transform(limited, augment)(picture(), detection(BOX))
        sizes.add(tuple(image.shape[1:]))
        found = where(image[0] > WHITE)
        torch.testing.assert_close(found, target["boxes"][0].as_subclass(Tensor), atol=1, rtol=0)
        torch.testing.assert_close(found, where(target["masks"][0] == 1), atol=1, rtol=0)
    assert sizes == {(40, 48), (50, 60), (80, 96)}


def test_a_side_that_is_longer_than_the_longest_one_is_an_error() -> None:
    limited = replace(INPUT, short_side=40, long_side=96)
    with pytest.raises(ValueError, match="long_side=96 is less than short_side=100"):
        joint_train_transform(limited, JointAugment(short_sides=(40, 100)))


def test_half_of_the_images_are_cropped_before_multi_scale_training() -> None:
    augment = JointAugment(
        short_sides=(64,), crop_sides=(100, 200), crop_range=(60, 80), color_jitter=0
    )
    tall, whole_images = set(), 0
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = joint_train_transform(INPUT, augment)(picture(), detection(BOX))
        height, width = image.shape[1:]
        whole_images += (height, width) == (64, 77)
        tall.add(height > width)
        assert min(height, width) == 64
        assert max(height, width) <= 86  # 80 of 60 pixels
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            found = where(image[0] > WHITE)
            torch.testing.assert_close(found, box.as_subclass(Tensor), atol=2, rtol=0)
            torch.testing.assert_close(where(mask == 1), box.as_subclass(Tensor), atol=2, rtol=0)
    assert 15 <= whole_images <= 45
    assert tall == {True, False}


def test_a_flip_exchanges_left_and_right() -> None:
    size = replace(INPUT, input_size=(3, HEIGHT, WIDTH))
    flip = JointAugment(scale=(1.0, 1.0), hflip=1.0, color_jitter=0)
    image, target = joint_train_transform(size, flip)(picture(), detection((10, 20, 70, 60)))
    assert target["boxes"][0].tolist() == [WIDTH - 70, 20, WIDTH - 10, 60]
    assert where(target["masks"][0] == 1).tolist() == [WIDTH - 70, 20, WIDTH - 10, 60]
    assert where(image[0] > WHITE).tolist() == [WIDTH - 70, 20, WIDTH - 30, 60]
    _, mask = joint_train_transform(size, flip)(picture(), CLASSES)
    assert torch.equal(mask[:HEIGHT, :WIDTH], CLASSES.flip(-1))


def test_windows_that_one_class_fills_are_avoided() -> None:
    varied = JointAugment(scale=(4.0, 4.0), color_jitter=0, cat_max_ratio=0.75)
    shares = []
    for seed in range(20):
        torch.manual_seed(seed)
        _, mask = joint_train_transform(INPUT, varied)(picture(), CLASSES)
        shares.append(float(mask.flatten().bincount().max() / mask.numel()))
    assert sum(share < 0.75 for share in shares) >= 18
    _, mask = joint_train_transform(INPUT, varied)(picture(), Mask(torch.full_like(CLASSES, 255)))
    assert mask.unique().tolist() == [IGNORED]


def test_photometric_distortion_changes_the_image_alone() -> None:
    augment = replace(HALF, scale=(1.0, 1.0), photometric=True)
    plain, _ = joint_train_transform(INPUT, replace(augment, photometric=False))(picture(), CLASSES)
    changed = 0
    for seed in range(8):
        torch.manual_seed(seed)
        image, mask = joint_train_transform(INPUT, augment)(picture(), CLASSES)
        assert image.min() >= -2
        assert image.max() <= 2
        changed += bool((image - plain).abs().max() > 0.01)
        assert mask.unique().tolist() == [0, 7, IGNORED]
    assert changed >= 5


def test_crowd_and_area_are_carried_with_their_boxes() -> None:
    outside = (-20, -20, -10, -10)
    target = objects(
        BOX, outside, BOX, crowd=torch.tensor([False, False, True]), area=torch.arange(3.0)
    )
    _, found = joint_train_transform(INPUT, HALF)(picture(), target)
    assert found["crowd"].tolist() == [False, True]
    assert found["area"].tolist() == [0, 2]


def test_an_object_whose_mask_is_empty_is_removed() -> None:
    target = detection(BOX, (50, 50, 90, 90))
    target["masks"][1] = 0
    _, found = joint_train_transform(INPUT, HALF)(picture(), target)
    assert found["labels"].tolist() == [0]
    assert len(found["masks"]) == len(found["boxes"]) == 1


@pytest.mark.parametrize(
    "target",
    [
        Mask(torch.zeros(10, 20, dtype=torch.uint8)),
        {"boxes": BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(10, 20))},
    ],
)
def test_a_target_of_another_image_size_is_an_error(target: Any) -> None:
    with pytest.raises(ValueError, match=r"20 x 10 pixels.*120 x 100"):
        joint_train_transform(INPUT, HALF)(picture(), target)


def test_other_targets_are_left_as_they_are() -> None:
    _, found = joint_train_transform(INPUT, HALF)(picture(), 3)
    assert found == 3
