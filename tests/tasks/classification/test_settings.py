from __future__ import annotations

from pathlib import Path

import pytest
from timm.models import is_model

from convattn.tasks.classification.config import TrainConfig, describe
from convattn.tasks.classification.settings import (
    list_recipes,
    load_config,
    load_recipe,
    make_config,
    parse_overrides,
    save_config,
)

RECIPES = ["acmix_pvt", "acmix_resnet", "acmix_swin", "digits", "finetune", "glnet", "nano"]


def test_the_recipes_are_listed() -> None:
    assert list_recipes() == RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
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


def test_a_written_configuration_is_a_recipe(tmp_path: Path) -> None:
    config = load_config("glnet", {"model_args": {"slots": 16}, "name": "größe"})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("epochs=3", {"epochs": 3}),
        ("lr=1e-3", {"lr": 0.001}),
        ("lr=5E2", {"lr": 500.0}),
        ("ema=true", {"ema": True}),
        ("clip_grad=null", {"clip_grad": None}),
        ("scale=[0.5,1]", {"scale": [0.5, 1]}),
        ("name=a=b", {"name": "a=b"}),
        ("model_args.depths=[1,1]", {"model_args": {"depths": [1, 1]}}),
        ("opt_betas=[9e-1,0.95]", {"opt_betas": [0.9, 0.95]}),
    ],
)
def test_words_become_settings(word: str, expected: dict[str, object]) -> None:
    assert parse_overrides([word]) == expected


def test_several_arguments_of_the_model_come_together() -> None:
    found = parse_overrides(["model_args.a=1", "model_args.b=x"])
    assert found == {"model_args": {"a": 1, "b": "x"}}


@pytest.mark.parametrize(("word", "hint"), [("epoch", "epochs=..."), ("=3", "epochs=10")])
def test_a_word_without_a_value_is_an_error(word: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"settings are KEY=VALUE, such as {hint}, got {word!r}"):
        parse_overrides([word])


def test_a_value_that_is_no_yaml_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"cannot read the value in 'scale=\[1'"):
        parse_overrides(["scale=[1"])


def test_an_unknown_setting_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown setting 'epoch'; did you mean 'epochs'"):
        make_config({"epoch": 3})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": "many"}, r"epochs=many: must be a valid integer \(passes over"),
        ({"epochs": 0}, "epochs=0: must be greater than or equal to 1"),
        ({"lr": -1}, r"lr=-1: must be greater than 0 \(learning rate; default 0.001\)"),
        ({"ema": "perhaps"}, "ema=perhaps: must be a valid boolean"),
        ({"sched": "cosin"}, "sched=cosin: must be 'cosine', 'tanh'"),
        ({"precision": "8"}, "precision=8: must be 'auto', '32'"),
        ({"opt_betas": [0.9, 2]}, "opt_betas.1=2: must be less than or equal to 1"),
        ({"scale": [1.0, 0.5]}, r"scale is \(least, most\), got \[1.0, 0.5\]"),
        ({"scale": [1.0, 1.5]}, "scale is a share of the area, at most 1, got 1.5"),
        ({"epochs": 3, "warmup_epochs": 4}, "warmup_epochs=4 .* do not fit into epochs=3"),
        ({"lr": 1e-6}, "min_lr=1e-05 and warmup_lr=1e-06 must not be above lr=1e-06"),
        ({"from_scratch": False}, "starts from trained weights: add init="),
        ({"in_chans": 2}, "in_chans=2: must be 1 or 3"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(values)


def test_every_mistake_is_reported() -> None:
    with pytest.raises(ValueError, match=r"epochs=0.*\nlr=0.*\nseed=-1"):
        make_config({"epochs": 0, "lr": 0, "seed": -1})


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'digit'; did you mean 'digits'\?"):
        load_recipe("digit")


def test_a_missing_recipe_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no recipe file .*gone\.yaml"):
        load_recipe(tmp_path / "gone.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", ""])
def test_a_recipe_file_without_settings_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="must be lines of `key: value`"):
        load_recipe(path)


def test_a_recipe_that_is_no_yaml_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("a: [1")
    with pytest.raises(ValueError, match=r"odd\.yaml is not YAML"):
        load_recipe(path)


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
    rates = load_recipe(recipe)["drop_path"]
    assert all(is_model(name) for name in rates)


def test_every_setting_is_documented() -> None:
    text = describe()
    for key, field in TrainConfig.model_fields.items():
        assert f"  {key}=" in text
        assert field.description


@pytest.mark.parametrize(
    ("given", "warmup"),
    [({"epochs": 4}, 0.8), ({"epochs": 100}, 5), ({"epochs": 6, "warmup_epochs": 3}, 3)],
)
def test_the_warm_up_of_a_recipe_fits_a_short_training(given: dict, warmup: float) -> None:
    config = load_config("nano", given)
    assert config.warmup_epochs == warmup


def test_a_saved_configuration_keeps_its_warm_up(tmp_path: Path) -> None:
    config = load_config("nano", {"epochs": 6, "warmup_epochs": 3})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
