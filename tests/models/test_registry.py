from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch

import convattn

OURS = convattn.list_models()


def test_names_match_shell_patterns():
    assert convattn.list_models("acmix_resnet?8") == ["acmix_resnet38"]
    nano = ["glnet_nano", "glnet_nano_attn", "glnet_nano_conv"]
    assert convattn.list_models("glnet*nano*") == nano
    assert convattn.list_models("no_such*") == []
    assert sorted(OURS) == OURS


@pytest.mark.parametrize("name", OURS)
def test_timm_builds_every_model_by_name(name):
    assert timm.is_model(name)
    model: Any = timm.create_model(name, num_classes=3, in_chans=5, device="meta")
    assert (model.num_classes, model.in_chans) == (3, 5)
    assert model.pretrained_cfg["architecture"] == name


@pytest.mark.parametrize("name", OURS)
def test_pretrained_without_weights_raises(name):
    with pytest.raises(RuntimeError, match=f"no weights of {name} .*load_official"):
        convattn.create_model(name, pretrained=True)
    with pytest.raises(RuntimeError, match="checkpoint_path=PATH"):
        timm.create_model(name, pretrained=True, features_only=True)


def test_models_of_timm_are_built_by_name():
    model = convattn.create_model("resnet10t", num_classes=2)
    assert type(model).__module__ == "timm.models.resnet"


@pytest.mark.parametrize(
    ("name", "nearest"), [("glnet_nan", "glnet_nano"), ("resnet-50", "resnet50")]
)
def test_unknown_name_suggests_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"unknown model '{name}'; did you mean '{nearest}'"):
        convattn.create_model(name)


def test_an_unknown_name_without_a_near_one_leads_to_the_lists():
    with pytest.raises(ValueError, match=r"unknown model 'q'\. convattn\.list_models\(\)"):
        convattn.create_model("q")


@pytest.mark.parametrize("name", ["glnet_nano", "acmix_resnet_nano"])
def test_unknown_argument_suggests_the_nearest(name):
    with pytest.raises(
        TypeError, match=f"{name} takes no argument 'in_chan'; did you mean 'in_chans'"
    ):
        convattn.create_model(name, in_chan=1)


@pytest.mark.parametrize("name", ["acmix_deit_nano", "baseline_resnet_nano", "glnet_nano"])
@pytest.mark.parametrize("out_indices", [(), -1, 0, 5, (1, 4), (-5,)])
def test_out_indices_that_a_model_does_not_have_are_refused(name, out_indices):
    message = f"{name} has 4 maps, numbered from 0 to 3: .* got {re.escape(str(out_indices))}$"
    with pytest.raises(ValueError, match=message):
        convattn.create_model(name, features_only=True, out_indices=out_indices)


@pytest.mark.parametrize("name", ["acmix_swin_nano", "glnet_nano", "san_nano"])
def test_feature_cls_dict_gives_maps_by_name(name):
    maps = convattn.create_model(name, features_only=True, feature_cls="dict")
    assert [m.shape[2] for m in maps(torch.randn(2, 3, 64, 64)).values()] == [16, 8, 4, 2]


def test_variants_are_functions_of_their_family():
    from convattn.models import glnet

    assert glnet.glnet_nano(num_classes=2).num_classes == 2  # type: ignore[attr-defined]


def test_img_size_is_refused_where_images_have_any_size() -> None:
    with pytest.raises(TypeError, match=r"'img_size': the model supports images of any size"):
        convattn.create_model("acmix_swin_nano", img_size=64)


@pytest.mark.parametrize("name", convattn.list_models("*_nano"))
def test_every_family_has_the_arguments_of_timm(name):
    last = 16 if "deit" in name else 32
    arguments: dict[str, Any] = {"output_stride": last, "drop_rate": 0.1, "drop_path_rate": 0.1}
    model: Any = convattn.create_model(name, num_classes=3, global_pool="max", **arguments)
    assert model.head_hidden_size == model.num_features
    assert (model.drop_rate, model.feature_info[-1]["reduction"]) == (0.1, last)
    with pytest.raises(ValueError, match=r"output.stride .*, got (output_stride=)?4"):
        convattn.create_model(name, output_stride=4)
