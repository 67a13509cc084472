from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.data.auto_augment import AugmentOp, posterize

from convattn.data import Augment, Preprocess, eval_transform, preprocess_for, train_transform

PLAIN = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0, color_jitter=0.0)
GREY = Preprocess(input_size=(1, 16, 16), mean=(0.5,), std=(0.25,))


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_the_evaluation_transform_equals_that_of_timm() -> None:
    model = timm.create_model("test_vit")
    ours = eval_transform(preprocess_for(model, in_chans=3))(picture())
    theirs = create_transform(**resolve_model_data_config(model))(picture())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_training_transform_equals_that_of_timm(channels: int) -> None:
    statistics: dict[str, Any] = {"mean": (0.48, 0.45, 0.4)[:channels], "std": (0.2,) * channels}
    preprocess = Preprocess(input_size=(channels, 16, 16), **statistics)
    ours = train_transform(preprocess, Augment(erasing=1.0))
    theirs = create_transform(
        input_size=(channels, 16, 16),
        interpolation="bicubic",
        is_training=True,
        re_prob=1.0,
        re_mode="pixel",
        auto_augment=None,
        color_jitter=(0.4,) * 3,
        **statistics,
    )
    image = picture().convert("L") if channels == 1 else picture()
    found = []
    for transform in (ours, theirs):
        random.seed(3)
        torch.manual_seed(3)
        found.append(transform(image))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_one_channel_has_the_average_statistics_of_the_colours() -> None:
    model = timm.create_model("test_vit", in_chans=1)
    found = preprocess_for(model, in_chans=1, img_size=24, crop_pct=1.0)
    config = resolve_model_data_config(model)
    assert found.input_size == (1, 24, 24)
    assert found.mean == pytest.approx((sum(config["mean"]) / 3,))
    assert eval_transform(found)(picture()).shape == (1, 24, 24)


def test_a_preprocess_can_be_written_to_json_and_read() -> None:
    assert Preprocess.from_dict(json.loads(json.dumps(GREY.to_dict()))) == GREY


def test_the_lengths_of_the_sides_are_written_only_where_they_are_given() -> None:
    sided = replace(GREY, short_side=480, long_side=800)
    assert Preprocess.from_dict(json.loads(json.dumps(sided.to_dict()))) == sided
    assert not {"short_side", "long_side"} & set(GREY.to_dict())


@pytest.mark.parametrize(
    ("sides", "size", "expected"),
    [
        ({}, (200, 100), (48, 96)),
        ({}, (100, 200), (64, 32)),
        ({}, (10, 5), (48, 96)),
        ({}, (1000, 1), (1, 96)),
        ({"short_side": 800, "long_side": 1333}, (640, 480), (800, 1067)),
        ({"short_side": 800, "long_side": 1333}, (427, 640), (1199, 800)),
        ({"short_side": 800, "long_side": 1333}, (1000, 500), (666, 1333)),
        ({"short_side": 512}, (2000, 500), (512, 2048)),
        ({"long_side": 100}, (20, 40), (100, 50)),
    ],
)
def test_the_resized_size_keeps_the_ratio(
    sides: dict[str, Any], size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert replace(GREY, input_size=(1, 64, 96), **sides).resized(size) == expected


@pytest.mark.parametrize(
    ("sides", "named"),
    [
        ({"short_side": 0}, "short_side=0"),
        ({"short_side": 12.5}, r"short_side=12\.5"),
        ({"long_side": True}, "long_side=True"),
        ({"short_side": 8, "long_side": 7}, "long_side=7 is less than short_side=8"),
    ],
)
def test_wrong_lengths_of_the_sides_are_named(sides: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(GREY, **sides)


def test_the_transforms_of_classification_do_not_depend_on_the_lengths_of_the_sides() -> None:
    sided = replace(GREY, short_side=8)
    assert torch.equal(eval_transform(sided)(picture()), eval_transform(GREY)(picture()))


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_numbers_of_channels_are_an_error(channels: int) -> None:
    with pytest.raises(ValueError, match=f"1 or 3 channels, got in_chans={channels}"):
        Preprocess(input_size=(channels, 8, 8), mean=(0.5,), std=(0.5,))


def test_training_without_augmentation_equals_evaluation() -> None:
    image = picture().resize((16, 16))
    torch.testing.assert_close(train_transform(GREY, PLAIN)(image), eval_transform(GREY)(image))


def test_hflip_0_never_flips_an_image() -> None:
    image = Image.fromarray(np.tile(np.arange(16, dtype=np.uint8) * 15, (16, 1)))
    augment = Augment(hflip=0.0, color_jitter=0.0, degrees=10, translate=0.1, zoom=(0.9, 1.1))
    transform = train_transform(GREY, augment)
    for _ in range(30):
        row = transform(image)[0, 6:10].mean(0)
        assert row[12] > row[3]


def test_a_translated_image_is_filled_with_the_background() -> None:
    white = Image.new("L", (16, 16), 255)
    moved = Augment(**{**PLAIN.__dict__, "translate": 0.5, "background": 0})
    torch.manual_seed(0)
    corners = [train_transform(GREY, moved)(white)[0].min().item() for _ in range(10)]
    assert min(corners) == pytest.approx(-2.0)  # (0 - 0.5) / 0.25


def test_a_translated_image_is_filled_with_the_mean_by_default() -> None:
    white = Image.new("RGB", (16, 16), "white")
    color = Preprocess(input_size=(3, 16, 16), mean=(0.5, 0.4, 0.2), std=(1.0, 1.0, 1.0))
    moved = Augment(**{**PLAIN.__dict__, "translate": 0.5})
    torch.manual_seed(1)
    least = torch.stack([train_transform(color, moved)(white).amin((1, 2)) for _ in range(10)])
    torch.testing.assert_close(least.amin(0), torch.zeros(3), atol=0.005, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_strongest_policy_of_the_papers_runs(channels: int) -> None:
    statistics = (0.5,) * channels
    preprocess = Preprocess(input_size=(channels, 16, 16), mean=statistics, std=statistics)
    policy = Augment(auto_augment="rand-m10-mstd2-inc1", erasing=0.25)
    transform = train_transform(preprocess, policy)
    random.seed(0)
    for seed in range(150):
        assert transform(picture(seed)).shape == (channels, 16, 16)


def test_posterize_to_0_bits_keeps_1_bit() -> None:
    transform = train_transform(GREY, Augment(auto_augment="rand-m9-inc1"))
    ops = [
        op
        for step in transform.steps  # type: ignore[attr-defined]
        for policy in getattr(step, "transforms", ())
        for op in getattr(policy, "ops", ())
        if isinstance(op, AugmentOp)
    ]
    functions: list[Any] = [op.aug_fn for op in ops if "Posterize" in op.name]
    assert functions
    assert posterize not in functions
    assert functions[0](picture(), 0).size == picture().size
