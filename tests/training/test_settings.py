from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from convattn.models import create_model
from convattn.tasks.classification.config import TrainConfig
from convattn.training.config import RunConfig, setting
from convattn.training.kinds import kinds_of
from convattn.training.settings import (
    describe,
    list_recipes,
    load_config,
    load_recipe,
    make_config,
    parse_overrides,
)


class Config(RunConfig):
    """A task with one setting of its own."""

    model: str = setting("resnet18", "model")
    data: str = setting("digits", "data")
    anchors: int = setting(3, "anchors per position")
    task: Literal["boxes"] = setting("boxes", "task")


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    (tmp_path / "long.yaml").write_text("epochs: 50\nwarmup_epochs: 10\nlr: 1e-2\n")
    (tmp_path / "short.yaml").write_text("epochs: 10\n")
    (tmp_path / "README.md").write_text("")
    return tmp_path


def recipe(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(Config, folder, path)


def test_the_recipes_of_a_folder_are_listed(recipes: Path) -> None:
    assert list_recipes(recipes) == ["long", "short"]


def test_overrides_replace_the_recipe_which_replaces_the_defaults(recipes: Path) -> None:
    config = load_config(Config, recipes, "long", {"lr": 0.5})
    assert (config.epochs, config.lr, config.batch_size) == (50, 0.5, 64)


def test_a_recipe_is_a_name_or_a_file(recipes: Path) -> None:
    assert load_config(Config, recipes, recipes / "short.yaml").epochs == 10
    assert load_config(Config, recipes, "short").epochs == 10


def test_the_default_recipe_is_used_where_none_is_named(recipes: Path) -> None:
    class Short(Config):
        @classmethod
        def default_recipe(cls, values: Mapping[str, Any]) -> str:
            return "short"

    assert load_config(Short, recipes).epochs == 10
    assert load_config(Short, recipes, "long").epochs == 50
    assert load_config(Config, recipes).epochs == 100


def test_epochs_of_the_user_replace_steps_of_a_recipe_and_steps_replace_epochs(
    recipes: Path,
) -> None:
    (recipes / "updates.yaml").write_text("steps: 900\nwarmup_steps: 50\n")
    assert load_config(Config, recipes, "updates").steps == 900
    in_epochs = load_config(Config, recipes, "updates", {"epochs": 3})
    assert (in_epochs.epochs, in_epochs.steps, in_epochs.warmup_steps) == (3, None, 50)
    in_updates = load_config(Config, recipes, "long", {"steps": 70})
    assert (in_updates.steps, in_updates.lr) == (70, 0.01)


@pytest.mark.parametrize("key", ["epochs", "warmup_epochs", "cooldown_epochs"])
def test_a_length_in_updates_and_one_in_epochs_contradict_each_other(
    recipes: Path, key: str
) -> None:
    with pytest.raises(ValueError, match=f"steps=70 and {key}=2 contradict"):
        load_config(Config, recipes, None, {"steps": 70, key: 2})


def test_a_setting_without_a_value_names_itself(recipes: Path) -> None:
    class NoData(Config):
        data: str = setting(..., "a folder")

    with pytest.raises(ValueError, match=r"data is not set; write data=VALUE \(a folder\)"):
        load_config(NoData, recipes)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("epochs=3", {"epochs": 3}),
        ("lr=1e-3", {"lr": 0.001}),
        ("lr=5E2", {"lr": 500.0}),
        ("ema=true", {"ema": True}),
        ("clip_grad=null", {"clip_grad": None}),
        ("decay_milestones=[5,10]", {"decay_milestones": [5, 10]}),
        ("name=a=b", {"name": "a=b"}),
        ("model_args.depths=[1,1]", {"model_args": {"depths": [1, 1]}}),
        ("opt_betas=[9e-1,0.95]", {"opt_betas": [0.9, 0.95]}),
    ],
)
def test_words_become_settings(word: str, expected: dict[str, object]) -> None:
    assert parse_overrides([word], Config) == expected


def test_several_arguments_of_the_model_are_collected() -> None:
    found = parse_overrides(["model_args.a=1", "model_args.b=x"], Config)
    assert found == {"model_args": {"a": 1, "b": "x"}}


@pytest.mark.parametrize(
    ("word", "hint"),
    [("epoch", "epochs=..."), ("=3", "epochs=10"), ("model_args.=3", "model_args=...")],
)
def test_a_word_without_a_value_is_an_error(word: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"settings are KEY=VALUE, such as {hint}, got {word!r}"):
        parse_overrides([word], Config)


def test_a_value_that_is_not_yaml_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"cannot read the value in 'opt_betas=\[1'"):
        parse_overrides(["opt_betas=[1"], Config)


def test_an_unknown_setting_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown setting 'epoch'; did you mean 'epochs'"):
        make_config(Config, {"epoch": 3})
    with pytest.raises(ValueError, match="unknown setting 'anchor'; did you mean 'anchors'"):
        make_config(Config, {"anchor": 3})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": "many"}, r"epochs=many: must be a valid integer \(passes over"),
        ({"epochs": 0}, "epochs=0: must be greater than or equal to 1"),
        ({"lr": -1}, r"lr=-1: must be greater than 0 \(learning rate; default 0.001\)"),
        ({"ema": "perhaps"}, "ema=perhaps: must be a valid boolean"),
        ({"sched": "cosin"}, "sched=cosin: must be 'cosine', 'tanh'"),
        ({"precision": "8"}, "precision=8: must be 'auto', '32'"),
        ({"precision": "bf16"}, "precision=bf16: .*; did you mean 'bf16-mixed'"),
        ({"precision": 16}, "precision=16: .*; did you mean '16-mixed'"),
        ({"precision": "32-true"}, "precision=32-true: .*; did you mean '32'"),
        ({"opt_betas": [0.9, 2]}, "opt_betas.1=2: must be less than 1"),
        ({"ema_decay": 1}, "ema_decay=1: must be less than 1"),
        ({"momentum": 1}, "momentum=1: must be less than 1"),
        ({"drop_path": 1}, "drop_path=1: must be less than 1"),
        ({"layer_decay": 0}, "layer_decay=0: must be greater than 0"),
        ({"model_args": 3}, "model_args=3: must be entries, such as model_args.depths="),
        ({"opt_betas": "0.9,0.95"}, r"opt_betas=0.9,0.95: .* two numbers, such as opt_betas=\[0.9"),
        ({"opt_betas": [0.9]}, r"opt_betas=\[0.9\]: must be a list of two numbers, such as opt_b"),
        ({"value_range": [1, 2, 3]}, r"=\[1, 2, 3\]: .* two numbers, such as value_range=\[0,655"),
        ({"decay_milestones": 3}, r"must be a list of numbers, such as decay_milestones=\[30,60"),
        ({"workers": -1}, r"\(processes that load images; default: chosen by the data\)$"),
        ({"epochs": 3, "warmup_epochs": 4}, "warmup_epochs=4 .* do not fit into epochs=3"),
        ({"lr": 1e-6}, r"^min_lr=1e-05 must not be above lr=1e-06; add min_lr=0$"),
        ({"lr": 1e-7}, "min_lr=1e-05 and warmup_lr=1e-06 must .*; add min_lr=0 warmup_lr=0"),
        ({"from_scratch": False}, "from_scratch=false needs weights to start from: add init="),
        ({"in_chans": 2}, "in_chans=2: must be 1 or 3"),
        ({"task": "classification"}, "task=classification: must be 'boxes'"),
        ({"checkpoint_minutes": -1}, "checkpoint_minutes=-1: must be greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(Config, values)


NUMBERS = [
    key
    for key, field in Config.model_fields.items()
    if kinds_of(field.annotation) & {int, float} and not kinds_of(field.annotation) & {str}
]


@pytest.mark.parametrize("value", [True, "1_000"])
@pytest.mark.parametrize("key", NUMBERS)
def test_what_only_python_reads_as_a_number_is_an_error(key: str, value: Any) -> None:
    typed = "true" if value is True else value
    with pytest.raises(ValueError, match=f"{key}={typed}: must be "):
        make_config(Config, {key: value})


def test_the_example_of_model_args_fits_the_default_model() -> None:
    text = Config.model_fields["model_args"].description or ""
    word = text.split("such as ")[1]
    default = TrainConfig.model_fields["model"].default
    create_model(default, **parse_overrides([word], Config)["model_args"])


def test_every_mistake_is_reported() -> None:
    with pytest.raises(ValueError, match=r"epochs=0.*\nlr=0.*\nseed=-1"):
        make_config(Config, {"epochs": 0, "lr": 0, "seed": -1})


def test_an_unknown_recipe_suggests_the_nearest(recipes: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'shor'; did you mean 'short'\?"):
        load_recipe(Config, recipes, "shor")


def test_a_missing_recipe_file_is_named(recipes: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no recipe file .*gone\.yaml"):
        load_recipe(Config, recipes, recipes / "gone.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", ""])
def test_a_recipe_file_without_settings_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"mine\.yaml must consist of lines `key: value`"):
        recipe(tmp_path, text)


@pytest.mark.parametrize("text", ["a: [1", "epochs: !!python/object:os.system 3"])
def test_a_recipe_that_is_not_yaml_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"mine\.yaml is not YAML"):
        recipe(tmp_path, text)


def test_a_setting_that_a_recipe_sets_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine\.yaml sets 'epochs' twice"):
        recipe(tmp_path, "epochs: 3\nlr: 1\nepochs: 4\n")


def test_a_recipe_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("name: größe\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine\.yaml is not a text file in UTF-8"):
        load_recipe(Config, tmp_path, path)


def test_every_setting_is_described() -> None:
    text = describe(Config)
    assert "  anchors=3\n      anchors per position" in text
    for key, field in Config.model_fields.items():
        assert f"  {key}=" in text
        assert field.description


@pytest.mark.parametrize(
    ("given", "warmup"),
    [({"epochs": 4}, 0.8), ({"epochs": 100}, 10), ({"epochs": 6, "warmup_epochs": 3}, 3)],
)
def test_the_warm_up_of_a_recipe_fits_a_short_training(
    recipes: Path, given: dict[str, Any], warmup: float
) -> None:
    assert load_config(Config, recipes, "long", given).warmup_epochs == warmup


def test_the_settings_that_the_user_gave_are_known(recipes: Path) -> None:
    config = load_config(Config, recipes, "long", {"lr": 0.5})
    assert config.model_fields_set == {"lr"}
    assert config == make_config(Config, dict(config))
