"""Norms, factors and neighbours fold exactly, or are left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d, StdConv2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from convattn import ACmix, GLMix, XVolution
from convattn.layers.conv2d import ConvBeside
from convattn.layers.folding import (
    channel_affine,
    fold_norm,
    fold_norm_before,
    fold_scale,
    fold_sequence,
)
from tests.compare import assert_close
from tests.layers.properties import randomise

x = torch.randn(2, 8, 9, 7, dtype=torch.float64)


def norm(channels: int = 8) -> nn.BatchNorm2d:
    return randomise(nn.BatchNorm2d(channels)).double().eval()


def conv(*arguments: int, **options: object) -> nn.Conv2d:
    return randomise(nn.Conv2d(*arguments, **options)).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["batch", "frozen", "plain", "act", "sync"])
def test_a_norm_folds_into_the_convolution_before_it(bias, groups, kind):
    layer = conv(8, 12, 3, padding=1, bias=bias, groups=groups)
    after: nn.Module = {
        "batch": nn.BatchNorm2d,
        "frozen": FrozenBatchNorm2d,
        "plain": lambda c: nn.BatchNorm2d(c, affine=False),
        "act": BatchNormAct2d,
        "sync": nn.SyncBatchNorm,
    }[kind](12)
    after = randomise(after).double().eval()
    y = after(layer(x))
    assert fold_norm(layer, after)
    assert_close(torch.relu(layer(x)) if kind == "act" else layer(x), y, torch.float64)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_folds_into_an_unpadded_convolution_after_it(groups, bias):
    before, layer = norm(), conv(8, 16, 2, 2, bias=bias, groups=groups)
    y = layer(before(x))
    assert fold_norm_before(before, layer)
    assert_close(layer(x), y, torch.float64)


def test_a_norm_folds_into_linear_layers_on_both_sides():
    rows = torch.randn(5, 6, dtype=torch.float64)
    first, second = randomise(nn.Linear(6, 8)).double(), randomise(nn.Linear(8, 3)).double()
    between = randomise(nn.BatchNorm1d(8)).double().eval()
    y = second(between(first(rows)))
    before = copy.deepcopy(first)
    assert fold_norm(before, between)
    assert_close(second(before(rows)), y, torch.float64)
    assert fold_norm_before(between, second)
    assert_close(second(first(rows)), y, torch.float64)


def test_a_norm_does_not_fold_into_a_convolution_that_pads_what_it_gives():
    layer = conv(8, 8, 3, padding=1)
    weight = layer.weight
    assert not fold_norm_before(norm(), layer)
    assert layer.weight is weight


def _hooked() -> nn.Conv2d:
    layer = conv(8, 8, 1)
    layer.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize(
    ("layer", "after"),
    [
        (conv(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)),
        (conv(8, 8, 1), nn.GroupNorm(2, 8)),
        (conv(8, 8, 1), nn.LazyBatchNorm2d()),
        (StdConv2d(8, 8, 1), norm()),
        (nn.utils.parametrizations.weight_norm(conv(8, 8, 1)), norm()),
        (nn.LazyConv2d(8, 1), norm()),
        (nn.ConvTranspose2d(8, 8, 1), norm()),
        (nn.Identity(), norm()),
        (_hooked(), norm()),
    ],
    ids=lambda m: type(m).__name__,
)
def test_layers_with_another_computation_are_not_changed(layer, after):
    before = copy.deepcopy(layer)
    assert not fold_norm(layer, after)
    for name, value in before.named_parameters():
        if not nn.parameter.is_lazy(value):
            assert torch.equal(layer.get_parameter(name), value)


def test_a_norm_with_a_hook_is_not_folded():
    after = norm()
    after.register_forward_hook(lambda *_: None)
    assert not fold_norm(conv(8, 8, 1), after)


def test_a_folded_sequence_keeps_its_indices():
    layers = nn.Sequential(
        conv(8, 8, 3, padding=1), norm(), nn.ReLU(), norm(), conv(8, 4, 2, 2), norm(4), nn.GELU()
    ).eval()
    y = layers(x)
    fold_sequence(layers)
    kinds = ["Conv2d", "Identity", "ReLU", "Identity", "Conv2d", "Identity", "GELU"]
    assert [type(m).__name__ for m in layers] == kinds
    assert_close(layers(x), y, torch.float64)


def test_a_weight_that_another_layer_shares_stays_as_it_is():
    first, second = conv(8, 8, 1), conv(8, 8, 1)
    second.weight = first.weight
    y = second(x)
    fold_scale(first, torch.full((8,), 3.0, dtype=torch.float64))
    assert torch.equal(second(x), y)


def test_a_frozen_layer_stays_frozen_and_keeps_its_layout():
    layer = conv(8, 8, 3, bias=False).to(memory_format=torch.channels_last).requires_grad_(False)
    assert fold_norm(layer, norm())
    assert layer.bias is not None
    assert not any(p.requires_grad for p in layer.parameters())
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_channels_follow_the_type_of_the_map():
    affine = channel_affine(norm().float())
    assert affine is not None
    assert affine(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("weighting", [True, False])
@pytest.mark.parametrize("attention", ["pssa", "sa"])
def test_the_norm_after_xvolution_is_folded(attention, weighting, norms):
    layer = randomise(XVolution(8, 8, attention=attention, weighting=weighting)).double().eval()
    if not norms:  # as ``replace(keep=True)`` leaves it
        layer.take_over(conv(8, 8, 3, padding=1))
    after = norm()
    y = after(layer(x))
    assert fold_norm(layer, after)
    assert_close(layer(x), y, torch.float64)


def test_xvolution_is_left_alone_around_a_convolution_of_another_kind():
    layer = XVolution(8).double()
    layer.take_over(StdConv2d(8, 8, 3, padding=1).double())
    after = norm()
    y = after(layer.eval()(x))
    assert not fold_norm(layer, after)
    assert_close(after(layer(x)), y, torch.float64)


@pytest.mark.parametrize("branches", ["parallel", "sequential", "local", "global"])
@pytest.mark.parametrize("outputs", [8, 12])
def test_the_norm_after_glmix_is_folded(branches, outputs):
    layer = randomise(GLMix(8, outputs, branches=branches, stride=2)).double().eval()
    after = norm(outputs)
    y = after(layer(x))
    assert fold_norm(layer, after)
    assert_close(layer(x), y, torch.float64)


def _beside(operator: nn.Module) -> ConvBeside:
    return randomise(ConvBeside(nn.Conv2d(8, 8, 3, padding=1), operator)).double().eval()


@pytest.mark.parametrize("build", [ACmix, XVolution, GLMix])
def test_a_factor_of_an_operator_beside_a_convolution_folds(build):
    layer = _beside(build(8))
    deployed = copy.deepcopy(layer)
    deployed.reparameterize()
    deployed.reparameterize()
    assert deployed.gamma is None
    assert (deployed.conv is None) == (build is XVolution)
    assert_close(deployed(x), layer(x), torch.float64)


@pytest.mark.parametrize("build", [ACmix, XVolution, GLMix])
def test_a_norm_after_a_convolution_with_an_operator_folds(build):
    layer, after = _beside(build(8)), norm()
    y = after(layer(x))
    assert fold_norm(layer, after)
    assert_close(layer(x), y, torch.float64)


def test_a_factor_stays_where_the_operator_is_of_another_kind():
    layer = _beside(nn.Conv2d(8, 8, 1))
    y = layer(x)
    layer.reparameterize()
    assert layer.gamma is not None
    assert not fold_norm(layer, norm())
    assert torch.equal(layer(x), y)
