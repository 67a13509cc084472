from __future__ import annotations

import pytest

from convattn.tasks.segmentation.config import SegmentationConfig
from convattn.tasks.table import list_recipes, load_config
from convattn.training.config import data_options
from tests.tasks.segmentation.shapes import tiny


def config(recipe: str | None = None, **settings) -> SegmentationConfig:
    found = load_config("segmentation", recipe, {"data": "masks:here", **settings})
    assert isinstance(found, SegmentationConfig)
    return found


def test_recipes_are_listed():
    assert list_recipes("segmentation") == [
        "ade20k_160k",
        "ade20k_40k",
        "ade20k_80k",
        "scenes",
        "small",
    ]


@pytest.mark.parametrize(
    ("recipe", "steps", "batch", "lr", "decay"),
    [("ade20k_40k", 40_000, 32, 2e-4, 1e-4), ("ade20k_80k", 80_000, 16, 1e-4, 1e-4),
     ("ade20k_160k", 160_000, 16, 6e-5, 0.01)],
)  # fmt: skip
def test_recipes_of_the_papers(recipe, steps, batch, lr, decay):
    found = config(recipe, model="acmix_pvt_tiny", init="weights.pth")
    assert (found.steps, found.batch_size, found.lr, found.weight_decay) == (
        steps, batch, lr, decay,
    )  # fmt: skip
    assert (found.lr_batch, found.batch_norm) == (batch, "sync")
    assert (found.crop_side, found.sides, found.scale) == (512, (512, 2048), (0.5, 2.0))
    assert (found.sched, found.cat_max_ratio, found.photometric) == ("poly", 0.75, True)


def test_learning_rate_of_glnets_is_that_of_their_paper():
    assert config("ade20k_80k", model="glnet_4g", init="weights.pth").lr == 2e-4


@pytest.mark.parametrize("recipe", ["ade20k_40k", "ade20k_80k", "ade20k_160k"])
def test_recipes_of_the_papers_need_weights(recipe):
    with pytest.raises(ValueError, match="from_scratch=false needs weights to start from"):
        config(recipe)


def test_size_of_the_images_follows_img_size():
    assert config().sides == (512, 2048)
    assert config(img_size=320).crop_side == 320
    assert config(img_size=320).sides == (320, 1280)
    mixed = config(img_size=320, crop=100, short_side=200, long_side=300)
    assert (mixed.crop_side, mixed.sides, mixed.window_side) == (100, (200, 300), 96)


def test_data_is_opened_with_a_class_per_pixel():
    assert data_options(tiny())["targets"] == "segments"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "upernett"}, "did you mean 'upernet'"),
        ({"long_side": 100}, r"long_side=100 is less than short_side=512; set long_side=2048"),
        ({"window": 100}, "window=100: must be a multiple of 32"),
        ({"window_stride": 600}, r"window_stride=600 is greater than window=512"),
        ({"scale": [2, 1]}, r"scale is \(least, most\), got \[2.0, 1.0\]"),
        ({"inference": "windows"}, "inference=windows: must be 'whole' or 'slide'"),
        ({"ignored": 256}, "ignored=256: must be less than or equal to 255"),
        ({"chanels": 64}, "did you mean 'channels'"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_a_file_of_classes_is_found_from_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config(classes="names.txt").classes == str(tmp_path / "names.txt")
    (tmp_path / "streets").mkdir()
    (tmp_path / "streets" / "names.txt").touch()
    assert config(classes="names.txt", data="masks:streets").classes == "names.txt"
    assert config(classes=["sky", "road"]).classes == ("sky", "road")


def test_data_must_be_named():
    with pytest.raises(ValueError, match="data is not set"):
        load_config("segmentation", None, {})
