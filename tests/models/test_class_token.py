from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import group_parameters

import convattn
from tests.compare import assert_close

NAMES = ["pvt_nano", "acmix_pvt_nano", "acmix_deit_nano", "acmix_deit_nano_attn"]
WITHOUT = ["acmix_pvt_nano_conv", "acmix_deit_nano_conv"]


@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_token_and_then_the_positions_row_by_row(name, build):
    model, x = build(name), torch.randn(2, 3, 64, 96)
    features = model.forward_features(x)
    normed = model.forward_intermediates(x, [-1], norm=True, intermediates_only=True)[0]
    assert model.num_prefix_tokens == 1
    assert features.shape == (2, model.num_features, 1 + normed.shape[2] * normed.shape[3], 1)
    assert torch.equal(features[:, :, 1:, 0].reshape(normed.shape), normed)


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_normed_only_at_the_end_and_hold_no_token(name, build):
    model, x = build(name), torch.randn(2, 3, 64, 96)
    plain = model.forward_intermediates(x, intermediates_only=True)
    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    for info, a in zip(model.feature_info, plain, strict=True):
        assert a.shape[2:] == (64 // info["reduction"], 96 // info["reduction"])
    assert all(torch.equal(a, b) for a, b in zip(plain[:-1], normed[:-1], strict=True))
    assert_close(normed[-1], model.norm(plain[-1]), torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_the_classifier_reads_the_token_or_the_pooled_positions(name, build):
    model, x = build(name), torch.randn(2, 3, 64, 96)
    features = model.forward_features(x)
    assert model.head.global_pool.pool_type == "token"
    model.reset_classifier(0)
    assert torch.equal(model(x), features[:, :, 0, 0])
    for pool in ("avg", "max", "avgmax", "catavgmax"):
        model.reset_classifier(0, pool)
        expected = SelectAdaptivePool2d(pool_type=pool, flatten=True)(features[:, :, 1:])
        assert_close(model(x), expected, torch.float32)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    model.reset_classifier(5)
    assert model.head.global_pool.pool_type == "token"
    assert model(x).shape == (2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_the_token_depends_on_every_pixel_of_the_image(name, build):
    model = build(name, num_classes=0)
    x = torch.randn(1, 3, 64, 64, requires_grad=True)
    model(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum(1).gt(0).all()


@pytest.mark.parametrize("name", ["acmix_pvt_nano", "acmix_deit_nano"])
def test_the_last_convolution_has_no_effect_on_the_token(name, build):
    model = build(name, num_classes=3).train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    last = f"stages.{len(model.stages) - 1}.blocks.0.mixer."
    unused = {f"{last}{n}" for n in ("beta", "fc.weight", "fc.bias", "dep_conv.weight")}
    assert {n for n, p in model.named_parameters() if not p.grad.any()} == unused


@pytest.mark.parametrize("name", WITHOUT)
def test_the_convolution_alone_has_no_token_and_pools_its_map(name, build):
    model, x = build(name, num_classes=4), torch.randn(2, 3, 64, 96)
    assert not [n for n, _ in model.named_parameters() if n.endswith("cls_token")]
    features, maps = model.forward_intermediates(x)
    assert model.num_prefix_tokens == 0
    assert features.shape == maps[-1].shape
    assert_close(model.forward_head(features, True), features.mean((2, 3)), torch.float32)
    assert_close(model(x), model.head.fc(features.mean((2, 3))), torch.float32)
    with pytest.raises(ValueError, match="'token' needs a class token, and this model has none"):
        model.reset_classifier(4, "token")


@pytest.mark.parametrize("name", NAMES)
def test_return_prefix_tokens_pairs_each_map_with_its_token(name, build):
    model, x = build(name), torch.randn(2, 3, 64, 96)
    features, maps = model.forward_intermediates(x, norm=True)
    final, pairs = model.forward_intermediates(x, norm=True, return_prefix_tokens=True)
    assert torch.equal(final, features)
    assert all(torch.equal(pair[0], alone) for pair, alone in zip(pairs, maps, strict=True))
    tokens = [pair[1] for pair in pairs]
    assert [t.shape for t in tokens] == [(2, 1, m.shape[1]) for m in maps]
    assert torch.equal(tokens[-1][:, 0], features[:, :, 0, 0])
    # the token joins in the last stage of PVT, and in the first of DeiT
    before = len(maps) - 1 if "pvt" in name else 0
    assert [not t.any() for t in tokens] == [True] * before + [False] * (len(maps) - before)


@pytest.mark.parametrize("name", WITHOUT)
def test_a_model_without_a_token_gives_maps_alone(name, build):
    model, x = build(name), torch.randn(2, 3, 64, 96)
    _, maps = model.forward_intermediates(x)
    _, asked = model.forward_intermediates(x, return_prefix_tokens=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, asked, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_pruned_models_have_maps_alone(name, build):
    model, x = build(name), torch.randn(2, 3, 64, 96)
    maps = model.forward_intermediates(x, intermediates_only=True)
    model.prune_intermediate_layers([1])
    assert torch.equal(model.forward_features(x), maps[1])
    with pytest.raises(ValueError, match=r"'token' needs a class token, .* use global_pool='avg'"):
        model.reset_classifier(0, "token")
    model.reset_classifier(3)
    assert_close(model(x), model.head.fc(maps[1].mean((2, 3))), torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_pruned_to_the_last_stage_they_keep_the_token(name, build):
    model, x = build(name), torch.randn(2, 3, 64, 96)
    expected = model(x)
    model.prune_intermediate_layers(1, prune_head=False)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_positions_and_token_do_not_decay(name, build):
    model = build(name)
    leaves = {n.rsplit(".", 1)[-1] for n in model.no_weight_decay()}
    assert {"cls_token", "pos_embed"} <= leaves <= {"cls_token", "pos_embed", "alpha", "beta"}
    first = group_parameters(model, model.group_matcher())[0]
    assert "stages.0.positions.pos_embed" in first


@pytest.mark.parametrize("name", ["glnet_nano", "pvt_nano"])
def test_images_with_other_channels_are_refused(name, build):
    model = build(name)
    for call in (model, model.forward_intermediates):
        with pytest.raises(ValueError, match="in_chans=3 channels, got 4; build the model with"):
            call(torch.randn(1, 4, 32, 32))
    with pytest.raises(ValueError, match=r"images must have shape \(B, C, H, W\), got \(3, 32"):
        model(torch.randn(3, 32, 32))


@pytest.mark.parametrize("name", ["acmix_resnet_nano", "glnet_nano", "pvt_nano"])
class TestErrors:
    def test_empty_indices_are_refused(self, name, build):
        model = build(name)
        for call in (
            lambda: model.forward_intermediates(torch.randn(1, 3, 32, 32), indices=[]),
            lambda: model.prune_intermediate_layers([]),
        ):
            with pytest.raises(ValueError, match=r"at least one stage, got \[\]; use None for all"):
                call()

    def test_a_classifier_needs_pooling(self, name, build):
        message = "needs pooled features, got num_classes=7 with global_pool=''; use"
        with pytest.raises(ValueError, match=message):
            convattn.create_model(name, num_classes=7, global_pool="")
        with pytest.raises(ValueError, match=message):
            build(name).reset_classifier(7, "")

    def test_an_unknown_pooling_is_refused(self, name):
        arguments: dict[str, Any] = {"global_pool": "averag"}
        with pytest.raises(ValueError, match="unknown global_pool 'averag'; did you mean 'avg"):
            convattn.create_model(name, **arguments)


class _Doubled(torch.nn.Module):
    """An adapter that passes attributes on, as those of PEFT do."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base = base

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return _doubled(self, inputs, self.base(*inputs))


def _doubled(_: torch.nn.Module, __: Any, output: Any) -> Any:
    return tuple(2 * y for y in output) if isinstance(output, tuple) else 2 * output


@pytest.mark.parametrize("network", ["acmix_deit_nano", "acmix_pvt_nano"])
def test_a_hook_and_an_adapter_of_the_mixer_see_pixels_and_tokens(network):
    def model() -> Any:
        torch.manual_seed(0)
        return convattn.create_model(network).eval()

    plain, hooked, adapted = model(), model(), model()
    blocks = [m for m in hooked.modules() if type(m).__name__ == "TokenBlock"]
    for block in blocks:
        block.mixer.register_forward_hook(_doubled)
    for block in [m for m in adapted.modules() if type(m).__name__ == "TokenBlock"]:
        block.mixer = _Doubled(block.mixer)
    x = torch.randn(2, 3, *plain.default_cfg["input_size"][1:])
    with torch.no_grad():
        expected, seen, other = plain(x), hooked(x), adapted(x)
    assert not torch.allclose(seen, expected, rtol=1e-3)
    assert torch.equal(seen, other)
