from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convattn.training.config import RunConfig, setting
from convattn.training.settings import make_config


class Config(RunConfig):
    """A task with no settings of its own."""

    model: str = setting("resnet18", "model")
    data: str = setting("digits", "data")


FLOATS = sorted(
    key for key, field in Config.model_fields.items() if "float" in str(field.annotation)
)


def test_a_configuration_means_classification_unless_it_names_a_task() -> None:
    assert Config().task == "classification"


def test_the_path_of_a_folder_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Config(data="folder:pets").data == f"folder:{tmp_path / 'pets'}"
    assert Config(data="timm:pets").data == "timm:pets"
    assert Config(data="coco:pets").data == f"coco:{tmp_path / 'pets'}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 100}, r"decay_steps=\[\] must name updates before .*, update 100"),
        ({"steps": 100, "decay_steps": (50, 100)}, r"decay_steps=\[50, 100\] must name updates"),
        ({"decay_steps": (50, 40)}, r"decay_steps=\[50, 40\] must rise; write .*=\[40, 50\]"),
        ({"epochs": 60}, r"decay_milestones=\[30, 60, 90\] must name epochs .*, epoch 60"),
    ],
)
def test_milestones_rise_and_are_before_the_end(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(sched="multistep", **changes)


def test_a_long_warm_up_in_epochs_does_not_matter_where_updates_are_counted() -> None:
    assert Config(epochs=2, warmup_steps=500).warmup_steps == 500
    assert Config(steps=10).steps == 10


@pytest.mark.parametrize("name", ["CUDA", "Cpu", "AUTO", "mps"])
def test_the_accelerator_is_in_lower_case(name: str) -> None:
    assert Config(accelerator=name).accelerator == name.lower()


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), "inf", "nan"])
@pytest.mark.parametrize("key", FLOATS)
def test_every_number_is_finite(key: str, value: Any) -> None:
    pairs = ("opt_betas", "value_range")
    given = [0.1, value] if key in pairs else value
    with pytest.raises(ValueError, match=rf"{key}\S*={value}: must be"):
        make_config(Config, {key: given})


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("num_classes", "the data decides the number of classes"),
        ("in_chans", "write in_chans=1"),
        ("pretrained", "write pretrained=1"),
        ("name", "write model=1"),
        ("model_name", "write model=1"),
    ],
)
def test_model_args_cannot_hold_what_has_a_setting_or_the_data_decides(name: str, fix: str) -> None:
    with pytest.raises(ValueError, match=f"model_args.{name}=1 is not possible; {fix}"):
        make_config(Config, {"model_args": {name: 1}})


@pytest.mark.parametrize(
    ("key", "value", "name", "other"),
    [("drop_path", 0.2, "drop_path_rate", 0.1), ("img_size", 32, "img_size", 64)],
)
def test_a_setting_and_an_argument_of_the_model_that_contradict_each_other_are_an_error(
    key: str, value: float, name: str, other: float
) -> None:
    message = f"{key}={value} and model_args.{name}={other} contradict each other; set {key} alone"
    with pytest.raises(ValueError, match=message):
        make_config(Config, {key: value, "model_args": {name: other}})
    assert make_config(Config, {key: value, "model_args": {name: value}})
    assert make_config(Config, {"model_args": {name: other}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decay_milestones": [5, 2]}, r"\[5, 2\] must rise; write decay_milestones=\[2, 5\]"),
        ({"decay_milestones": [2, 2]}, r"\[2, 2\] must rise; write decay_milestones=\[2\]"),
        (
            {"sched": "multistep", "epochs": 60},
            r"\[30, 60, 90\] must name epochs before the end of the schedule, epoch 60",
        ),
        (
            {"sched": "multistep", "decay_milestones": [9], "epochs": 10, "cooldown_epochs": 1},
            r"\[9\] must name epochs before the end of the schedule, epoch 9",
        ),
        ({"sched": "multistep", "decay_milestones": []}, "must name epochs before the end"),
    ],
)
def test_milestones_rise_and_lie_inside_the_schedule(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(Config, {"warmup_epochs": 0, **values})


def test_milestones_may_lie_outside_a_schedule_that_has_none() -> None:
    assert make_config(Config, {"epochs": 5}).decay_milestones == (30, 60, 90)


def test_rates_by_model_name_give_that_of_the_model() -> None:
    rates = {"resnet18": 0.1, "resnet50": 0.2}
    assert Config(drop_path=rates).drop_path == 0.1  # type: ignore[arg-type]
    assert Config(model="resnet50", drop_path=rates).drop_path == 0.2  # type: ignore[arg-type]
    assert Config(model="vgg11", drop_path=rates).drop_path is None  # type: ignore[arg-type]


def test_two_kinds_of_weights_to_start_from_contradict_each_other() -> None:
    with pytest.raises(ValueError, match=r"pretrained=true and init=runs/x .*; set pretrained=fal"):
        make_config(Config, {"pretrained": True, "init": "runs/x"})
