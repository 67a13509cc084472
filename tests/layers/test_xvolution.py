from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from convattn import XVolution
from tests.compare import assert_close
from tests.golden import relative_error
from tests.layers.properties import LayerProperties, randomise


class TestXVolution(LayerProperties):
    def build(self, backend: str = "auto") -> nn.Module:
        return XVolution(16, backend=backend)


class TestXVolutionWithStride(LayerProperties):
    out_channels, stride = 24, 2

    def build(self, backend: str = "auto") -> nn.Module:
        return XVolution(16, 24, stride=2, distance=2, weighting=False, backend=backend)


class TestXVolutionWithSoftmaxAttention(LayerProperties):
    stride = 2

    def build(self, backend: str = "auto") -> nn.Module:
        return XVolution(16, stride=2, attention="sa", backend=backend)


class TestXVolutionWithDilation(LayerProperties):
    def build(self, backend: str = "auto") -> nn.Module:
        return XVolution(16, dilation=2, backend=backend)


ATTENTIONS = ["pssa", "sa"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_starts_as_the_convolution_alone(attention, training):
    layer: Any = XVolution(16, 24, stride=2, attention=attention).train(training)
    x = torch.randn(2, 16, 9, 7)
    assert torch.equal(layer(x), layer.conv_norm(layer.conv(x)))


def test_reset_parameters_sets_the_attention_scale_to_zero():
    layer: Any = XVolution(8)
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    assert not layer.attn_norm.weight.any()
    assert layer.conv_norm.weight.all()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_attention_learns_from_the_start(attention):
    layer: Any = XVolution(16, attention=attention)
    layer(torch.randn(2, 16, 9, 7)).square().sum().backward()
    assert layer.attn_norm.weight.grad is not None
    assert layer.attn_norm.weight.grad.all()


def test_the_convolution_branch_is_a_convolution_of_torch():
    layer = randomise(XVolution(16, 24, kernel_size=5, stride=2)).eval()
    nn.init.zeros_(layer.get_parameter("attn_norm.weight"))
    nn.init.zeros_(layer.get_parameter("attn_norm.bias"))
    norm = nn.BatchNorm2d(24).eval()
    conv = nn.Conv2d(16, 24, 5, stride=2, padding=2, bias=False)
    state = layer.state_dict()
    conv.load_state_dict({"weight": state["conv.weight"]})
    norm.load_state_dict({k: state[f"conv_norm.{k}"] for k in norm.state_dict()})
    x = torch.randn(2, 16, 9, 7)
    assert_close(layer(x), norm(conv(x)), torch.float32)


@pytest.mark.parametrize("weighting", [False, True])
def test_a_pixel_reaches_only_its_neighbourhood(weighting):
    layer = randomise(XVolution(16, distance=2, weighting=weighting)).eval()
    x = torch.randn(1, 16, 13, 13, requires_grad=True)
    layer(x)[0, :, 6, 6].sum().backward()
    assert x.grad is not None
    rows = x.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    reach = 2 + weighting  # the displacements, and one more pixel of the weighting
    assert (rows.min(), rows.max()) == (6 - reach, 6 + reach)


def test_softmax_attention_sees_the_whole_map():
    layer = randomise(XVolution(16, attention="sa")).eval()
    x = torch.randn(1, 16, 13, 13, requires_grad=True)
    layer(x)[0, :, 6, 6].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum(dim=1).gt(0).all()


def test_the_names_of_the_state_dict_are_frozen():
    weights = ["conv", "q_proj", "k_proj", "v_proj", "weighting"]
    statistics = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    names = {f"{name}.weight" for name in weights}
    names |= {f"{norm}.{s}" for norm in ("conv_norm", "attn_norm") for s in statistics}
    assert set(XVolution(16).state_dict()) == names
    assert set(XVolution(16, weighting=False).state_dict()) == names - {"weighting.weight"}


@pytest.mark.parametrize(("distance", "reaches"), [(None, 2), (1, 1), (4, 4)])
def test_displacements_have_the_dilation_of_the_convolution_by_default(distance, reaches):
    layer = randomise(XVolution(16, dilation=2, distance=distance, weighting=False)).eval()
    nn.init.zeros_(layer.get_parameter("conv.weight"))
    x = torch.randn(1, 16, 13, 13, requires_grad=True)
    layer(x)[0, :, 6, 6].sum().backward()
    assert x.grad is not None
    rows = x.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten().tolist()
    assert rows == [6 - reaches, 6, 6 + reaches]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_convolution_is_dilated(attention):
    layer: Any = XVolution(16, 24, kernel_size=5, stride=2, dilation=3, attention=attention).eval()
    conv = nn.Conv2d(16, 24, 5, 2, 6, 3, bias=False)
    conv.load_state_dict(layer.conv.state_dict())
    x = torch.randn(2, 16, 9, 7)
    assert_close(layer(x), layer.conv_norm(conv(x)), torch.float32)


def test_repr_shows_the_arguments():
    text = "16, 24, kernel_size=3, stride=2, dilation=1, num_heads=4, attention=pssa, distance=1"
    assert XVolution(16, 24, stride=2).extra_repr() == text


@pytest.mark.parametrize("weighting", [False, True])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_deployed_form_computes_the_same_without_norms(attention, weighting):
    layer = randomise(XVolution(16, 24, stride=2, attention=attention, weighting=weighting))
    deployed = copy.deepcopy(layer.double().eval())
    for _ in range(2):  # the second time nothing is left
        deployed.reparameterize()
        assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
        x = torch.randn(2, 16, 9, 7, dtype=torch.float64)
        assert relative_error(deployed(x), layer(x)) < 1e-10
    again = copy.deepcopy(deployed)
    again.load_state_dict(deployed.state_dict())


def test_the_deployed_form_without_weighting_is_one_convolution_whose_kernel_sees_the_map():
    layer = randomise(XVolution(8, 12, num_heads=3, weighting=False)).double().eval()
    x = torch.randn(1, 8, 7, 6, dtype=torch.float64)
    expected = layer(x)
    layer.reparameterize()
    state = layer.state_dict()
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    q, k = (layer.get_submodule(n)(t) for n, t in [("q_proj", x), ("k_proj", padded)])
    y = state["conv.bias"][:, None, None].expand(12, 7, 6).clone()
    for i in range(3):
        for j in range(3):
            keys = k[:, :, i : i + 7, j : j + 6]
            near = (q * keys).unflatten(1, (3, 4)).sum(2) / (2 * 9)  # r_delta of each head
            kernel = (
                state["conv.weight"][:, :, i, j, None, None]
                + near[0].repeat_interleave(4, 0)[:, None] * state["v_proj.weight"]
            )
            y += (kernel * padded[0, :, i : i + 7, j : j + 6]).sum(1)
    assert relative_error(y[None], expected) < 1e-10


def test_norms_of_a_kept_convolution_are_folded():
    layer = XVolution(8, 8)
    layer.take_over(nn.Conv2d(8, 8, 3, padding=1))
    randomise(layer).double().eval()
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    expected = layer(x)
    layer.reparameterize()
    assert relative_error(layer(x), expected) < 1e-10


def test_frozen_layers_stay_frozen_when_deployed():
    layer = XVolution(8).requires_grad_(False)
    layer.reparameterize()
    assert "conv.bias" in dict(layer.named_parameters())
    assert not any(p.requires_grad for p in layer.parameters())


def test_norms_without_running_statistics_stay():
    layer = randomise(XVolution(8)).double().eval()
    for norm in (layer.conv_norm, layer.attn_norm):
        norm.running_mean = norm.running_var = None  # type: ignore[assignment]
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    expected = layer(x)
    layer.reparameterize()
    assert_close(layer(x), expected, torch.float64)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"num_heads": 3}, "got out_chans=16, num_heads=3; the nearest num_heads that fits is 2"),
    ({"num_heads": -1}, "num_heads must be at least 1, got -1"),
    ({"kernel_size": 2}, "kernel_size must be odd, got 2; use 1 or 3"),
    ({"stride": 0}, "stride must be at least 1, got 0"),
    ({"distance": 0}, "distance must be at least 1, got 0"),
    ({"dilation": 0}, "dilation must be at least 1, got 0"),
    ({"out_chans": 0}, "out_chans must be at least 1, got 0"),
    ({"attention": "psa"}, "unknown attention 'psa'; did you mean 'pssa'"),
    ({"backend": "sdpa"}, "unknown backend 'sdpa'"),
    ({"attention": "sa", "backend": "shifted"}, "unknown backend 'shifted'"),
    ({"attention": "sa", "distance": 2}, "distance is for attention='pssa', got distance=2"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        XVolution(16, **arguments)


def test_unknown_keywords_are_refused():
    with pytest.raises(TypeError, match="groups"):
        XVolution(16, groups=2)  # type: ignore[call-arg]
