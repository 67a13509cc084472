from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from timm.models import is_model

from convattn.tasks.classification import TrainConfig, list_recipes, load_config
from convattn.tasks.classification.settings import RECIPES
from convattn.training.settings import describe, load_recipe

NAMES = ["acmix_pvt", "acmix_resnet", "acmix_swin", "digits", "finetune", "glnet", "nano"]


def test_the_recipes_are_listed() -> None:
    assert list_recipes() == NAMES


@pytest.mark.parametrize("recipe", NAMES)
def test_every_recipe_is_a_valid_configuration(recipe: str) -> None:
    start = {"pretrained": True} if recipe == "finetune" else {}
    config = load_config(recipe, start)
    assert config.epochs > 0
    assert is_model(config.model)


def test_a_folder_is_remembered_by_its_full_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(None, {"data": "folder:pets"}).data == f"folder:{tmp_path / 'pets'}"


def test_the_command_line_wins_over_the_recipe_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 7\nlr: 1e-3\n")
    config = load_config(path, {"lr": 0.5, "data": "digits"})
    assert (config.epochs, config.lr, config.batch_size) == (7, 0.5, 64)


def test_the_digits_have_their_own_recipe_and_other_data_the_defaults() -> None:
    assert load_config().degrees > 0
    assert load_config(None, {"data": "folder:x"}).degrees == 0


@pytest.mark.parametrize("name", ["größe", "123", "yes", "2026-11-29", "null", "caf\udce9"])
def test_a_written_configuration_is_a_recipe(tmp_path: Path, name: str) -> None:
    changes = {"model_args": {"slots": 16}, "epochs": 6, "warmup_epochs": 3, "name": name}
    config = load_config("glnet", changes)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (tmp_path / "config.yaml").write_text(text)
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": [1.0, 0.5]}, r"scale is \(least, most\), got \[1.0, 0.5\]"),
        ({"scale": [1.0, 1.5]}, "scale is a share of the area, at most 1, got 1.5"),
        ({"crop_pct": 0}, "crop_pct=0: must be greater than 0"),
        ({"mixup": 0.2, "batch_size": 1}, "mixup and CutMix mix two images .* batch_size=1"),
        ({"task": "detection"}, "task=detection: must be 'classification'"),
        ({"drop": 0.1, "model_args": {"drop_rate": 0.2}}, "drop=0.1 and model_args.drop_rate=0.2"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, values)


def test_drop_path_of_a_family_is_looked_up_by_model() -> None:
    assert load_config("glnet").drop_path == 0.15
    assert load_config("glnet", {"model": "glnet_16g"}).drop_path == 0.4
    assert load_config("glnet", {"model": "resnet18"}).drop_path is None
    assert load_config("glnet", {"drop_path": 0.05}).drop_path == 0.05


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        ("acmix_swin_tiny", 0.2),
        ("acmix_swin_small", 0.3),
        ("conv_swin_tiny", 0.2),
        ("swin_small_patch4_window7_224", 0.3),
    ],
)
def test_drop_path_of_swin_is_that_of_what_it_is_compared_with(model: str, rate: float) -> None:
    assert load_config("acmix_swin", {"model": model}).drop_path == rate


@pytest.mark.parametrize("recipe", ["acmix_swin", "glnet"])
def test_every_model_that_a_recipe_names_exists(recipe: str) -> None:
    rates = load_recipe(TrainConfig, RECIPES, recipe)["drop_path"]
    assert all(is_model(name) for name in rates)


def test_the_settings_of_classification_are_described() -> None:
    text = describe(TrainConfig)
    for key, field in TrainConfig.model_fields.items():
        assert f"  {key}=" in text
        assert field.description


def test_a_configuration_names_its_task(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("epochs: 3\n")
    assert load_config(path).model_dump()["task"] == "classification"
