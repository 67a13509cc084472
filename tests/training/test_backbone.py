from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from convattn.training.backbone import build_backbone, check_batch
from convattn.training.config import RunConfig
from convattn.training.settings import make_config


def config(model: str, given: tuple[str, ...] = (), **values: Any) -> RunConfig:
    values = {"data": "digits", "model": model, **values}
    return make_config(RunConfig, values, given=given)


def build(config: RunConfig) -> tuple[nn.Module, dict[str, Any], list[str]]:
    return build_backbone(config, num_classes=2, in_chans=3)


def test_the_model_is_made_with_its_settings() -> None:
    model, arguments, notes = build(config("test_vit", img_size=32, drop_path=0.1))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    assert arguments == {"img_size": 32, "drop_path_rate": 0.1}
    assert notes == []


def test_a_rate_of_a_recipe_is_left_out_of_a_model_without_it() -> None:
    _, arguments, notes = build(config("densenet121", drop_path=0.1))
    assert notes == ["drop_path=0.1 is left out: densenet121 has no argument drop_path_rate"]
    assert arguments == {}


def test_a_rate_that_the_user_gave_is_an_error_for_a_model_without_it() -> None:
    message = (
        r"densenet121 has no argument drop_path_rate, which drop_path=0.1 sets; write drop_path=nul"
    )
    with pytest.raises(ValueError, match=message):
        build(config("densenet121", given=("drop_path",), drop_path=0.1))
    with pytest.raises(ValueError, match=message):
        build(RunConfig(model="densenet121", data="digits", drop_path=0.1))


@pytest.mark.parametrize("model", ["glnet_nano", "test_vit"])
def test_an_unknown_argument_of_the_model_is_an_error(model: str) -> None:
    with pytest.raises(ValueError, match=r"model_args\.drop_path=0\.1 does not fit .*drop_path'"):
        build(config(model, given=("drop_path",), drop_path=0.1, model_args={"drop_path": 0.1}))


def test_gradient_checkpointing_is_turned_on() -> None:
    model, _, notes = build(config("test_vit", grad_checkpointing=True))
    assert getattr(model, "grad_checkpointing", False) is True
    assert notes == []


def test_gradient_checkpointing_of_a_recipe_is_left_out_of_a_model_without_it() -> None:
    _, _, notes = build(config("hrnet_w18_small", grad_checkpointing=True))
    assert notes == ["grad_checkpointing is left out: hrnet_w18_small does not support it"]


def test_gradient_checkpointing_that_the_user_gave_is_an_error_for_a_model_without_it() -> None:
    with pytest.raises(
        ValueError, match=r"hrnet_w18_small does not support .*; set grad_checkpointing=false"
    ):
        build(config("hrnet_w18_small", given=("grad_checkpointing",), grad_checkpointing=True))


def norm_after(stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride, 1), nn.BatchNorm2d(4), nn.Dropout())


def test_a_batch_of_one_image_whose_maps_have_one_pixel_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"batches of 1 image of 3x8x8 .* set batch_size=2"):
        check_batch(norm_after(8), 1, (3, 8, 8))


@pytest.mark.parametrize(("stride", "images"), [(8, 2), (4, 1)])
def test_a_batch_norm_with_several_values_per_channel_is_accepted(stride: int, images: int) -> None:
    check_batch(norm_after(stride), images, (3, 8, 8))


def test_the_check_of_the_batch_changes_neither_the_model_nor_the_random_numbers() -> None:
    model = norm_after(4).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    check_batch(model, 1, (3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        ("glnet_nano", "depths", 3),
        ("glnet_nano", "depths", [1, 1]),
        ("test_vit", "block_fn", "x"),
        ("test_vit", "global_pool", "x"),
        ("resnet18", "block", 3),
        ("resnet18", "foo", 1),
        ("glnet_nano", "foo", 1),
    ],
)
def test_an_argument_that_does_not_fit_the_model_is_named(
    model: str, name: str, value: Any
) -> None:
    message = re.escape(f"model_args.{name}={value} does not fit {model}: ")
    with pytest.raises(ValueError, match=f"^{message}"):
        build(config(model, model_args={name: value}))


def test_an_unknown_tag_of_weights_names_the_known_ones() -> None:
    message = (
        r"^model=resnet18\.foo: resnet18 has no .*'foo'; write model=resnet18; known: a1_in1k,"
    )
    with pytest.raises(ValueError, match=message):
        build(config("resnet18.foo"))
    with pytest.raises(ValueError, match=r"glnet_nano has no weights .*; write model=glnet_nano$"):
        build(config("glnet_nano.foo"))


def test_a_model_of_a_hub_that_cannot_be_loaded_is_named() -> None:
    with pytest.raises(ValueError, match=r"model=local-dir:/no/where cannot be "):
        build(config("local-dir:/no/where"))


@pytest.mark.parametrize("values", [{}, {"model_args": {"drop_rate": 0.1}}])
def test_weights_that_cannot_be_downloaded_are_replaced_by_init(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no weights of glnet_nano .* write init=RUN_OR_CHECKPOI"):
        build(config("glnet_nano", pretrained=True, **values))
