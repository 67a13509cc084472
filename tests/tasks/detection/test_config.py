from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convattn.models import list_models
from convattn.tasks.detection.config import DetectionConfig
from convattn.tasks.detection.models import METHODS, method_arguments
from convattn.tasks.table import list_recipes, load_config, methods_of
from convattn.training.config import data_options
from convattn.training.settings import describe, parse_overrides


def config(recipe: str | None = None, **changes: Any) -> DetectionConfig:
    found = load_config("detection", recipe, {"data": "coco:pets", **changes})
    assert isinstance(found, DetectionConfig)
    return found


def test_the_table_and_the_settings_know_the_methods_of_the_models() -> None:
    assert methods_of("detection") == tuple(METHODS)
    for method, detector in METHODS.items():
        assert config(method=method).has_masks == detector.has_masks
        missing = {*method_arguments(method)} - {*DetectionConfig.model_fields}
        assert missing == {"backbone_args"}


@pytest.mark.parametrize("recipe", list_recipes("detection"))
@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_fits_every_method_and_model(recipe: str, method: str) -> None:
    for model in ("glnet_4g", "acmix_resnet50", "acmix_swin_tiny", "acmix_pvt_tiny", "resnet50"):
        found = config(recipe, method=method, model=model, from_scratch=True)
        assert 0 < found.lr < 1
        assert isinstance(found.opt, str)


@pytest.mark.parametrize(
    ("model", "opt", "lr", "decay"),
    [
        ("acmix_resnet50", "momentum", 1e-2, 1e-4),
        ("acmix_san19", "momentum", 1e-2, 1e-4),
        ("acmix_pvt_tiny", "adamw", 1e-4, 1e-4),
        ("acmix_swin_tiny", "adamw", 1e-4, 0.05),
        ("glnet_4g", "adamw", 1e-4, 0.05),
    ],
)
@pytest.mark.parametrize(("recipe", "epochs"), [("coco_1x", 12), ("coco_3x", 36)])
def test_the_recipes_of_the_papers(
    recipe: str, epochs: int, model: str, opt: str, lr: float, decay: float
) -> None:
    found = config(recipe, model=model, init="weights.safetensors")
    assert (found.opt, found.lr, found.weight_decay) == (opt, lr, decay)
    assert (found.epochs, found.lr_batch, found.warmup_steps) == (epochs, 16, 500)
    assert (found.short_side, found.long_side) == (800, 1333)
    assert found.norm_maps is ("swin" in model)
    assert found.batch_norm == ("sync" if "swin" in model else "eval")


def test_the_recipes_of_the_papers_need_weights() -> None:
    with pytest.raises(ValueError, match="from_scratch=false needs weights to start from"):
        config("coco_1x")


def test_a_value_may_be_given_by_the_name_of_the_method() -> None:
    scales = [config("small", method=method).anchor_scale for method in METHODS]
    assert scales == [2, 4, 4, 4]


def test_a_value_for_other_models_is_an_error_that_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lr:\n  resnet50: 0.1\n")
    with pytest.raises(ValueError, match=r"lr=\{resnet50: 0.1\}: must be a valid number"):
        config(str(path))
    assert config(str(path), model="resnet50").lr == 0.1


@pytest.mark.parametrize(
    ("method", "targets"),
    [("retinanet", "boxes"), ("faster_rcnn", "boxes"), ("mask_rcnn", "instances")],
)
def test_the_data_is_opened_with_the_targets_of_the_method(method: str, targets: str) -> None:
    options = data_options(config(method=method, json="a.json", images=["one", "two"]))
    assert options["targets"] == targets
    assert (options["json"], options["images"]) == ("a.json", ("one", "two"))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("json=a.json", "a.json"),
        ("json=[a.json, b.json]", ["a.json", "b.json"]),
        ("json='[a].json'", "[a].json"),
        ("json=null", None),
    ],
)
def test_one_or_two_files_can_be_typed(word: str, value: Any) -> None:
    assert parse_overrides([word], DetectionConfig) == {"json": value}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "mask_rcn"}, "method=mask_rcn: must be .*; did you mean 'mask_rcnn'"),
        ({"short_side": 800, "long_side": 600}, "long_side=600 is less than short_side=800"),
        ({"short_sides": [400, 1400]}, r"short_sides=\[400, 1400\] has lengths above long_side=1"),
        ({"scale": [2, 1]}, r"scale is \(least, most\), got \[2.0, 1.0\]"),
        ({"crop_range": [600, 300]}, r"crop_range is \(least, most\), got \[600, 300\]"),
        ({"json": ["a", "b", "c"]}, "json=.*: must be one path, or those of training and val"),
        ({"nms": 0}, "nms=0: must be greater than 0"),
        ({"proposals": 0}, "proposals=0: must be greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_every_setting_is_described() -> None:
    text = describe(DetectionConfig)
    assert all(f"  {key}=" in text for key in DetectionConfig.model_fields)
    assert "glnet_nano" in list_models()
