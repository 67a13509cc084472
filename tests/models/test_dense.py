from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convattn.models import create_model, is_single_path, list_models
from convattn.models.dense import DenseModel, feature_extractor
from convattn.models.feature_pyramid import MapBackbone

FLAT = ("acmix_deit_nano",)
NANO = [n for n in list_models("*nano*") if not is_single_path(n) and n not in FLAT]
OTHERS = ["resnet10t", "efficientnet_b0", "convnext_atto", "swin_tiny_patch4_window7_224"]


class Heads(DenseModel):
    """One convolution on each map."""

    def __init__(self, model: str, **arguments) -> None:
        super().__init__(MapBackbone(feature_extractor(model, **arguments)), model, arguments)
        self.heads = nn.ModuleList(nn.Conv2d(c, 2, 1) for c in self.backbone.channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(m) for head, m in zip(self.heads, self.backbone(x), strict=True)]


def any_model(name: str) -> Any:
    return create_model(name)


def randomized(model: nn.Module) -> nn.Module:
    """Change every tensor, so that a tensor that is not loaded is seen."""
    for value in model.state_dict().values():
        value.copy_(torch.rand(value.shape) + 0.5)
    return model


def test_there_is_a_nano_model_of_every_family():
    assert len(NANO) >= 9


@pytest.mark.parametrize("name", [*NANO, *OTHERS])
def test_backbone_loads_every_tensor_of_a_classifier(name):
    classifier: Any = randomized(create_model(name))
    model = Heads(name).eval()
    heads = {k: v.clone() for k, v in model.heads.state_dict().items()}
    names = model.load_backbone(classifier.state_dict())
    assert names.missing == []
    assert len(names.loaded) == len(model.backbone.body.state_dict())
    assert sorted(names.loaded + names.unexpected) == sorted(classifier.state_dict())
    head = classifier.pretrained_cfg["classifier"]
    assert f"{head}.weight" in names.unexpected
    for key, value in model.heads.state_dict().items():
        torch.testing.assert_close(value, heads[key], rtol=0, atol=0)
    own = model.backbone.body.state_dict()
    given = classifier.state_dict()
    for key, name_there in zip(own, names.loaded, strict=True):
        assert torch.equal(own[key], given[name_there]), key
        assert key.rsplit(".", 1)[-1] == name_there.rsplit(".", 1)[-1]


@pytest.mark.parametrize("name", [n for n in NANO if "resnet" not in n])
def test_features_equal_those_of_the_classifier_after_loading(name):
    classifier: Any = create_model(name).eval()
    model = Heads(name).eval()
    model.load_backbone(classifier.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.forward_intermediates(x, intermediates_only=True)
        maps = model.backbone(x)
    for ours, theirs in zip(maps, expected[-4:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_features_of_a_resnet_equal_those_of_the_classifier_after_loading():
    classifier: Any = create_model("acmix_resnet_nano").eval()
    model = Heads("acmix_resnet_nano").eval()
    model.load_backbone(classifier.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            model.backbone(x)[-1], classifier.forward_features(x), rtol=0, atol=0
        )


def test_names_that_do_not_fit_are_returned():
    state = create_model("glnet_nano").state_dict()
    lost = "stages.0.blocks.0.mixer.slot_scale"
    del state[lost]
    state["teacher"] = torch.zeros(1)
    names = Heads("glnet_nano").load_backbone(state)
    assert names.missing == [lost]
    assert "teacher" in names.unexpected


@pytest.mark.parametrize("source", ["grey", "other"])
def test_weights_that_do_not_fit_change_nothing(source):
    model = Heads("glnet_nano")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    if source == "grey":
        state = create_model("glnet_nano", in_chans=1).state_dict()
        message = r"stem\.0\.weight has shape \(16, 1, 3, 3\) instead of \(16, 3, 3, 3\)"
    else:
        state = {"encoder.weight": torch.zeros(3)}
        message = "'glnet_nano': it has none of the names"
    with pytest.raises(ValueError, match=message):
        model.load_backbone(state)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["acmix_deit_nano", "test_vit.r160_in1k"])
def test_backbone_of_one_stride_is_an_error(name):
    with pytest.raises(ValueError, match=r"strides \[16, 16, 16, 16\]"):
        feature_extractor(name)


def test_backbone_of_three_maps_is_an_error():
    with pytest.raises(ValueError, match=r"levit_128s cannot be the backbone .* needs 4 maps"):
        feature_extractor("levit_128s")


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "glnet_nano", "resnet10t"])
def test_images_of_any_size(name):
    model = Heads(name).eval()
    with torch.no_grad():
        maps = model(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_misspelt_backbone_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'glnet_nano'"):
        feature_extractor("glnet_nan")
    with pytest.raises(TypeError, match="did you mean 'drop_path_rate'"):
        feature_extractor("glnet_nano", drop_path=0.1)


@pytest.mark.parametrize("name", [*NANO, *OTHERS])
def test_layer_decay_orders_the_learning_rates_from_stem_to_heads(name):
    model = Heads(name)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    parameters = dict(model.named_parameters())
    assert len(scale) == len(parameters)
    heads = {scale[id(p)] for p in model.heads.parameters()}
    assert heads == {1.0}
    body = list(model.backbone.body.parameters())
    assert scale[id(body[0])] == min(scale.values()) < 0.2
    assert all(scale[id(p)] < 1 for p in body)


def test_coarse_groups_are_stages():
    model = Heads("glnet_nano")
    layer = model.group_matcher(coarse=True)
    stage = {"stem": 0, **{f"stages.{i}": i + 1 for i in range(4)}}
    for name, _ in model.named_parameters():
        start = name.removeprefix("backbone.body.model.")
        expected = next((i for prefix, i in stage.items() if start.startswith(prefix)), 5)
        assert layer(name) == expected, name


def test_parameters_without_decay_are_those_of_the_classifier():
    for name in ("glnet_nano", "acmix_resnet_nano", "pvt_nano"):
        model, classifier = Heads(name), any_model(name)
        excluded = model.no_weight_decay()
        assert excluded
        assert excluded <= {n for n, _ in model.named_parameters()}
        ends = {e.removeprefix("backbone.body.").removeprefix("model.") for e in excluded}
        assert ends == classifier.no_weight_decay() & ends
        assert len(ends) == len(classifier.no_weight_decay())


def test_frozen_norms_keep_statistics_and_weights():
    for name in ("glnet_nano", "acmix_resnet_nano"):
        model = Heads(name)
        model.set_batch_norm("frozen")
        model.train()
        norms = [m for m in model.backbone.body.modules() if isinstance(m, _BatchNorm)]
        assert norms
        assert not any(p.requires_grad for m in norms for p in m.parameters())
        before = [{k: v.clone() for k, v in m.state_dict().items()} for m in norms]
        sum(y.sum() for y in model(torch.rand(2, 3, 64, 64))).backward()
        for norm, state in zip(norms, before, strict=True):
            torch.testing.assert_close(norm.state_dict(), state, rtol=0, atol=0)
        model.set_batch_norm("train")
        assert all(m.training for m in norms)
        assert all(p.requires_grad for m in norms for p in m.parameters())


def test_evaluation_mode_norms_keep_statistics_and_train_weights():
    model = Heads("glnet_nano")
    model.set_batch_norm("eval")
    norm = model.backbone.body.model.stem[1]
    before = norm.running_mean.clone()
    model.eval().train()
    assert model.training
    assert not norm.training
    sum(y.sum() for y in model(torch.rand(2, 3, 64, 64))).backward()
    assert torch.equal(norm.running_mean, before)
    assert norm.weight.grad is not None


def test_mode_of_batch_norms_is_checked():
    with pytest.raises(ValueError, match="did you mean 'frozen'"):
        Heads("glnet_nano").set_batch_norm("froze")


@pytest.mark.parametrize("name", ["glnet_nano", "acmix_resnet_nano", "resnet10t"])
def test_gradients_with_checkpointing_equal_those_without(name):
    model = Heads(name)
    model.set_batch_norm("eval")
    x = torch.rand(1, 3, 64, 64)

    def gradients() -> list[Tensor | None]:
        model.zero_grad()
        sum(y.square().mean() for y in model(x)).backward()
        return [p.grad for p in model.parameters()]

    def number_of_saved_tensors() -> int:
        saved: list[Tensor] = []

        def save(value: Tensor) -> Tensor:
            saved.append(value)
            return value

        with torch.autograd.graph.saved_tensors_hooks(save, lambda value: value):
            model(x)
        return len(saved)

    expected, stored = gradients(), number_of_saved_tensors()
    model.set_grad_checkpointing()
    assert number_of_saved_tensors() < stored
    torch.testing.assert_close(gradients(), expected)
    model.set_grad_checkpointing(False)
    assert number_of_saved_tensors() == stored
