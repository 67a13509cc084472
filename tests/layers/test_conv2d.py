from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Conv2dSame, StdConv2d, StdConv2dSame
from torch import nn

from convattn.layers import (
    ACmix,
    ACmixConv2d,
    ConvBeside,
    GLMix,
    GLMixConv2d,
    XVolution,
    XVolutionConv2d,
)
from tests.compare import assert_close
from tests.layers.properties import LayerProperties, randomise

OPERATORS: list[Any] = [ACmix, XVolution, GLMix]
CLASSES: list[Any] = [ACmixConv2d, XVolutionConv2d, GLMixConv2d]
every_operator = pytest.mark.parametrize("operator", OPERATORS)
every_class = pytest.mark.parametrize("layer_class", CLASSES)


class TestACmixConv2d(LayerProperties):
    stride = 2

    def build(self, backend: str = "auto") -> nn.Module:
        return ACmixConv2d(16, 16, 3, 2, 2, 2, window_size=3, backend=backend)


class TestXVolutionConv2d(LayerProperties):
    stride = 2

    def build(self, backend: str = "auto") -> nn.Module:
        return XVolutionConv2d(16, 16, 3, 2, 2, 2, backend=backend)


class TestGLMixConv2d(LayerProperties):
    out_channels, stride = 24, 2

    def build(self, backend: str = "auto") -> nn.Module:
        return GLMixConv2d(16, 24, 3, 2, 2, 2, slots=4, backend=backend)


class TestConvBeside(LayerProperties):
    stride = 2

    def build(self, backend: str = "auto") -> nn.Module:
        conv = nn.Conv2d(16, 16, 3, 2, 1)
        return ConvBeside(conv, XVolution.from_conv2d(conv, backend=backend))

    # torch's own convolution names these in its own words
    test_a_map_has_four_dimensions = None  # type: ignore[assignment]
    test_channels_must_be_those_of_the_layer = None  # type: ignore[assignment]
    test_a_map_must_be_floating_point = None  # type: ignore[assignment]


@every_operator
@given(
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
)
def test_maps_are_as_large_as_those_of_the_convolution(
    operator, channels, kernel_size, stride, dilation, size
):
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(
        channels[0], channels[1], kernel_size, stride, padding, dilation, device="meta"
    )
    x = torch.empty(2, channels[0], *size, device="meta")
    assert operator.from_conv2d(conv).eval()(x).shape == conv(x).shape


@every_operator
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_values_are_finite_at_every_stride_and_dilation(operator, stride, dilation):
    conv = nn.Conv2d(6, 10, 3, stride, dilation, dilation)
    for size in [(1, 1), (2, 3), (13, 10)]:
        y = operator.from_conv2d(conv).eval()(torch.randn(2, 6, *size))
        assert y.isfinite().all()
        assert y.shape == conv(torch.randn(2, 6, *size)).shape


@every_class
def test_takes_exactly_the_arguments_of_a_convolution(layer_class):
    theirs = list(inspect.signature(nn.Conv2d.__init__).parameters.values())[1:]
    ours = list(inspect.signature(layer_class).parameters.values())
    assert [(p.name, p.default) for p in ours[:-1]] == [(p.name, p.default) for p in theirs]
    assert ours[-1].kind == inspect.Parameter.VAR_KEYWORD


@every_class
@pytest.mark.parametrize(
    "arguments",
    [
        (8, 12, 3, 1, 1),
        (8, 12, (3, 3), (2, 2), (1, 1), (1, 1), 1, False),
        (8, 12, 5, 1, "same", 2, 1, True, "zeros"),
        (8, 12, 1, 2, "valid"),
    ],
)
def test_has_the_arguments_and_output_shape_of_a_convolution(layer_class, arguments):
    x = torch.randn(2, 8, 9, 6)
    layer = layer_class(*arguments)
    assert layer(x).shape == nn.Conv2d(*arguments)(x).shape
    assert (layer.in_channels, layer.out_channels) == (8, 12)


@every_class
def test_device_and_dtype_are_those_asked_for(layer_class):
    layer = layer_class(8, 8, 3, padding=1, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}


@pytest.mark.parametrize("make", OPERATORS + CLASSES)
def test_follows_the_convolution(make):
    conv = nn.Conv2d(8, 8, 3, padding=1, device="meta", dtype=torch.bfloat16).eval()
    layer = make.from_conv2d(conv)
    assert type(layer) is make
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}
    assert not any(module.training for module in layer.modules())


@pytest.mark.parametrize("make", OPERATORS + CLASSES)
def test_follows_the_memory_format(make):
    conv = nn.Conv2d(8, 8, 3, padding=1).to(memory_format=torch.channels_last)
    last = make.from_conv2d(conv, kernel_size=3) if make in OPERATORS else make.from_conv2d(conv)
    plain = make.from_conv2d(nn.Conv2d(8, 8, 3, padding=1))
    for layer, is_last in [(last, True), (plain, False)]:
        wide = [p for p in layer.parameters() if p.dim() == 4 and p[0, :, 0, 0].numel() > 1]
        wide = [p for p in wide if p.shape[-1] > 1]
        assert {not p.is_contiguous() for p in wide} <= {is_last}


@pytest.mark.parametrize("operator", OPERATORS + CLASSES)
def test_the_kernel_can_be_another_one(operator):
    conv = nn.Conv2d(8, 8, 3, 2, 2, 2)
    layer = operator.from_conv2d(conv, kernel_size=5)
    assert layer.kernel_size == 5
    assert layer(torch.randn(1, 8, 9, 7)).shape == (1, 8, 5, 4)


@pytest.mark.parametrize("operator", OPERATORS + CLASSES)
@pytest.mark.parametrize("name", ["stride", "dilation"])
def test_the_other_sizes_are_those_of_the_convolution(operator, name):
    with pytest.raises(TypeError, match=f"no option '{name}': it is that of the convolution"):
        operator.from_conv2d(nn.Conv2d(8, 8, 3, padding=1), **{name: 2})


@pytest.mark.parametrize("make", OPERATORS + CLASSES)
def test_unknown_options_are_refused(make):
    with pytest.raises(
        TypeError, match=f"{make.__name__} takes no option 'colour'. Known: .*kernel"
    ):
        make.from_conv2d(nn.Conv2d(8, 8, 3, padding=1), colour="red")


@pytest.mark.parametrize(("channels", "heads"), [(16, 4), (6, 3), (10, 2), (7, 1), (1, 1)])
def test_heads_divide_the_channels(channels, heads):
    conv = nn.Conv2d(5, channels, 3, padding=1)
    assert ACmix.from_conv2d(conv).get_submodule("attn").num_heads == heads
    assert ACmix.from_conv2d(conv, attention="global").get_submodule("attn").num_heads == heads
    assert XVolution.from_conv2d(conv).num_heads == heads
    with pytest.raises(ValueError, match=f"out_chans={channels}, num_heads=11|dim={channels}"):
        ACmix.from_conv2d(conv, num_heads=11)


def test_num_heads_is_not_passed_to_attentions_without_heads():
    conv = nn.Conv2d(8, 16, 3, padding=1)
    assert ACmix.from_conv2d(conv, attention="patchwise")(torch.randn(2, 8, 9, 7)).shape[1] == 16


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kernel_size": 2}, "kernel_size must be odd, got 2; use 1 or 3"),
    ({"kernel_size": (1, 3)}, r"both axes: kernel_size must be one number, got \(1, 3\)"),
    ({"stride": (1, 2)}, r"both axes: stride must be one number, got \(1, 2\)"),
    ({"dilation": (1, 2)}, r"both axes: dilation must be one number, got \(1, 2\)"),
    ({"groups": 4}, "groups must be 1, got groups=4 of 8 channels; leave grouped"),
    ({"padding": 0}, r"padding must be 1 for kernel_size=3 and dilation=1, got \(0, 0\)"),
    ({"padding": (1, 0)}, r"padding must be 1 .*, got \(1, 0\)"),
    ({"padding": 1, "dilation": 2}, "padding must be 2 for kernel_size=3 and dilation=2"),
    ({"padding": "valid"}, "padding must be 1 .*, got valid"),
    ({"padding_mode": "reflect"}, "padding_mode must be 'zeros', got 'reflect'"),
]


@every_class
@pytest.mark.parametrize(("change", "message"), WRONG)
def test_unsupported_arguments_of_a_convolution_raise(layer_class, change, message):
    arguments = {"kernel_size": 3, "padding": 1, **change}
    with pytest.raises(ValueError, match=message):
        layer_class(8, 8, **arguments)
    with pytest.raises(ValueError, match=message):
        layer_class.from_conv2d(nn.Conv2d(8, 8, **arguments))


@every_operator
def test_only_convolutions_with_weights_are_taken(operator):
    with pytest.raises(TypeError, match=r"must be an nn\.Conv2d, got ConvTranspose2d"):
        operator.from_conv2d(nn.ConvTranspose2d(8, 8, 3))
    with pytest.raises(ValueError, match="run the network once before"):
        operator.from_conv2d(nn.LazyConv2d(8, 3, padding=1))


class _Half(nn.Conv2d):
    def forward(self, input):
        return super().forward(input)[..., ::2]


@every_operator
def test_convolutions_that_pad_in_their_own_way_are_asked_for_their_size(operator):
    for conv in (Conv2dSame(4, 8, 3, 2), StdConv2dSame(4, 8, 5, 2), StdConv2d(4, 8, 3, 2, 1)):
        for size in [(9, 7), (8, 10)]:
            x = torch.randn(2, 4, *size)
            assert operator.from_conv2d(conv)(x).shape == conv(x).shape
    with pytest.raises(ValueError, match=r"12 pixels become 12, but 6 in _Half|6 pixels become"):
        operator.from_conv2d(_Half(4, 8, 3, padding=1))


def test_a_convolution_that_is_taken_over_must_fit():
    layer = XVolution(8, 8, stride=2)
    with pytest.raises(ValueError, match=r"must be \(8, 8, 2\), got \(8, 8, 1\)"):
        layer.take_over(nn.Conv2d(8, 8, 3, padding=1))


def test_a_convolution_that_is_taken_over_is_the_result():
    layer = randomise(XVolution(8, 12, stride=2))
    conv = nn.Conv2d(8, 12, 5, 2, 2)
    layer.take_over(conv)
    assert layer.conv is conv
    x = torch.randn(2, 8, 9, 7)
    assert torch.equal(layer(x), conv(x))


def test_an_added_operator_starts_at_zero_and_learns():
    conv = nn.Conv2d(8, 12, 3, 2, 1)
    layer = ConvBeside(conv, ACmix.from_conv2d(conv))
    x = torch.randn(2, 8, 9, 7)
    assert torch.equal(layer(x), conv(x))
    layer(x).square().sum().backward()
    assert layer.gamma.grad is not None
    assert layer.gamma.grad.all()
    nn.init.ones_(layer.gamma)
    assert_close(layer(x), conv(x) + layer.op(x), torch.float32)


def test_an_added_operator_keeps_the_dtype_of_the_convolution():
    conv = nn.Conv2d(8, 12, 3, 2, 1)
    layer = ConvBeside(conv, GLMix.from_conv2d(conv))
    x = torch.randn(2, 8, 9, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == conv(x).dtype == torch.bfloat16
