from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from convattn import ACmix
from convattn.layers import GlobalAttention, SpatialReductionAttention, WindowAttention
from convattn.layers.acmix.convolution import SHIFTS
from convattn.layers.acmix.mixes import MIXES
from convattn.layers.attention.choice import ATTENTIONS
from tests.calls import Calls
from tests.compare import assert_close
from tests.golden import relative_error
from tests.layers.properties import randomise


def trained(in_chans: int = 12, out_chans: int = 16, **options: Any) -> Any:
    return randomise(ACmix(in_chans, out_chans, **options)).double().eval()


def assert_same_when_folded(layer: Any, size: tuple[int, int] = (9, 7)) -> Any:
    folded = copy.deepcopy(layer)
    x = torch.randn(2, layer.in_chans, *size, dtype=torch.float64)
    for _ in range(2):  # the second time nothing is left
        folded.reparameterize()
        assert relative_error(folded(x), layer(x)) < 1e-10
    return folded


@pytest.mark.parametrize("fc_bias", [False, True])
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("mix", MIXES)
def test_every_mix_and_shift_computes_the_same(mix, shift, fc_bias):
    layer = trained(mix=mix, shift=shift, fc_bias=fc_bias, window_size=3)
    folded = assert_same_when_folded(layer)
    assert (folded.direct is not None) == (mix != "attention" and shift != "tensor")
    assert folded.folded is None
    assert not any(isinstance(f, nn.Parameter) for f in (folded.alpha, folded.beta))


NOT_DILATED = ("window", "shifted_window")


@pytest.mark.parametrize(
    ("attention", "stride", "dilation"),
    [
        (name, stride, dilation)
        for name in ATTENTIONS
        for stride, dilation in [(1, 1), (2, 1), (1, 2), (3, 2)]
        if dilation == 1 or name not in NOT_DILATED
    ],
)
def test_every_attention_computes_the_same(attention, stride, dilation):
    layer = trained(attention=attention, stride=stride, dilation=dilation, fc_bias=True)
    for size in [(9, 7), (1, 1), (2, 3)]:
        folded = assert_same_when_folded(layer, size)
    assert folded.alpha == folded.beta == 1
    reduced = attention == "spatial_reduction"  # keys and values come from another map
    assert (folded.folded is not None, folded.direct is not None) == (reduced, not reduced)


@pytest.mark.parametrize("attention", ["global", "spatial_reduction"])
def test_tokens_are_the_same(attention):
    layer = trained(attention=attention)
    folded = copy.deepcopy(layer)
    folded.reparameterize()
    x, tokens = torch.randn(2, 12, 6, 5).double(), torch.randn(2, 3, 12).double()
    for ours, theirs in zip(
        folded.forward_tokens(x, tokens), layer.forward_tokens(x, tokens), strict=True
    ):
        assert relative_error(ours, theirs) < 1e-10


@pytest.mark.parametrize(
    "part",
    [
        GlobalAttention(16, num_heads=2, proj=True),
        SpatialReductionAttention(16, in_chans=12, proj=True),
        WindowAttention(16, window_size=3),
    ],
)
def test_alpha_is_folded_into_an_output_projection(part):
    layer = trained(attention=part)
    v = layer.v_proj.weight.clone()
    folded = assert_same_when_folded(layer)
    assert folded.alpha == 1
    assert torch.equal(folded.v_proj.weight, v)


@pytest.mark.parametrize(("heads", "stride", "folds"), [(4, 1, True), (8, 1, False), (8, 3, True)])
def test_the_two_layers_become_one_where_that_is_no_more_work(heads, stride, folds):
    layer = trained(
        num_heads=heads, stride=stride, fc_bias=True, attention="spatial_reduction", reduction=2
    )
    folded = assert_same_when_folded(layer)
    assert (folded.folded is not None) == folds
    assert (folded.fc is None) == folds
    weights = {name.split(".")[0] for name in folded.state_dict()}
    assert ("folded" in weights) == folds
    assert ("dep_conv" in weights) != folds


class _Squared(GlobalAttention):
    def forward(self, q, k, v):
        return super().forward(q, k, v).square()


@pytest.mark.parametrize("part", [_Squared(16), _Squared(16, proj=True)])
def test_alpha_is_not_folded_into_a_nonlinear_attention(part):
    folded = assert_same_when_folded(trained(attention=part))
    assert isinstance(folded.alpha, nn.Parameter)
    assert folded.beta == 1


@pytest.mark.parametrize(("alpha", "stays"), [(0.0, True), (1e-6, True), (-0.7, False)])
@pytest.mark.parametrize("mix", ["learned", "complement", "learned_alpha"])
@pytest.mark.parametrize("shift", ["learned", "tensor"])
def test_an_alpha_near_zero_is_not_folded_if_the_convolution_reads_v(mix, alpha, stays, shift):
    layer = trained(mix=mix, window_size=3, shift=shift)
    nn.init.constant_(layer.alpha, alpha)
    folded = assert_same_when_folded(layer)
    assert isinstance(folded.alpha, nn.Parameter) == (stays and shift == "tensor")


def test_the_reference_backend_is_not_folded():
    folded = assert_same_when_folded(trained(backend="reference", window_size=3))
    assert folded.folded is folded.direct is None
    assert folded.dep_conv is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays(dtype):
    layer = trained(fc_bias=True, window_size=3).to(dtype)
    x = torch.randn(2, 12, 9, 7, dtype=dtype)
    expected = layer.float()(x.float())
    layer.to(dtype).reparameterize()
    assert {p.dtype for p in layer.parameters()} == {dtype}
    spread = expected.std()
    assert_close(layer(x).float() / spread, expected / spread, torch.bfloat16)


def test_frozen_layers_stay_frozen():
    layer = trained(fc_bias=True).requires_grad_(False)
    layer.reparameterize()
    assert layer.direct is not None
    assert not any(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize(("mix", "projections"), [("learned", 3), ("convolution", 0)])
@pytest.mark.parametrize(("channels", "stride", "convolutions"), [(64, 1, 1), (256, 1, 2)])
def test_the_convolution_path_is_one_or_two_convolutions_of_the_map(
    channels, stride, convolutions, mix, projections
):
    layer = ACmix(channels, stride=stride, attention="global", mix=mix).eval()
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
        nn.init.zeros_(projection.get_parameter("bias"))
    layer.reparameterize()
    with Calls() as calls, torch.no_grad():
        layer(torch.randn(1, channels, 14, 14))
    border = convolutions == 1  # the one of the map of ones
    assert calls.count["convolution"] == projections + convolutions + border
    assert calls.count["cat"] == calls.count["einsum"] == calls.count["bmm"] == 0


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("heads", [1, 2, 4, 16])
@pytest.mark.parametrize("in_chans", [3, 300])  # as one convolution, and as two
@pytest.mark.parametrize("fc_bias", [False, True])
def test_any_widths_compute_the_same(kernel_size, heads, in_chans, fc_bias):
    layer = trained(
        in_chans, 16, kernel_size=kernel_size, num_heads=heads, fc_bias=fc_bias, window_size=3
    )
    folded = assert_same_when_folded(layer)
    assert folded.direct is not None


def test_the_map_is_convolved_densely_or_in_two_steps():
    dense = []
    for in_chans, stride in [(3, 1), (300, 1), (300, 8)]:
        layer = trained(in_chans, 16, window_size=3, stride=stride)
        dense.append(assert_same_when_folded(layer).direct.connect is None)
    assert dense == [True, False, True]


NORMS = [torch.zeros(16), torch.linspace(-2, 2, 16), torch.full((16,), 3.0)]


@pytest.mark.parametrize("scale", NORMS)
@pytest.mark.parametrize(
    "options",
    [
        *({"attention": name} for name in ATTENTIONS),
        *({"attention": name, "mix": "attention"} for name in ATTENTIONS),
        *({"mix": mix, "window_size": 3} for mix in MIXES),
        *({"shift": shift, "window_size": 3} for shift in SHIFTS),
        {"backend": "reference"},
        {"attention": "window", "stride": 2},
        {"in_chans": 300, "stride": 2, "dilation": 2},
        {"in_chans": 300, "fc_bias": True, "window_size": 3},
        {"attention": _Squared(16), "mix": "sum"},
    ],
)
def test_a_following_norm_is_folded_exactly_or_not_at_all(options, scale):
    layer = trained(**options)
    scale, shift = scale.double(), torch.randn(16).double()
    for size in [(9, 7), (1, 2)]:
        x = torch.randn(2, layer.in_chans, *size, dtype=torch.float64)
        expected, taken = layer(x), copy.deepcopy(layer)
        for times in (1, 2):
            if taken.absorb_affine(scale, shift):
                expected = scale[:, None, None] * expected + shift[:, None, None]
            torch.testing.assert_close(taken(x), expected, rtol=1e-9, atol=1e-9, msg=str(times))


@pytest.mark.parametrize(
    ("options", "takes"),
    [
        ({}, True),
        ({"mix": "convolution"}, True),
        ({"mix": "attention"}, True),
        ({"attention": "window"}, True),
        ({"attention": "patchwise"}, True),
        ({"attention": "patchwise", "mix": "attention"}, False),
        ({"attention": "spatial_reduction"}, False),
        ({"attention": "spatial_reduction", "mix": "attention"}, True),
        ({"attention": _Squared(16)}, False),
        ({"attention": _Squared(16), "mix": "attention"}, False),
        ({"attention": _Squared(16), "mix": "sum"}, False),
        ({"shift": "tensor"}, False),
        ({"backend": "reference"}, False),
    ],
)
def test_which_layers_a_following_norm_is_folded_into(options, takes):
    assert trained(**options).absorb_affine(torch.rand(16), torch.rand(16)) == takes


@pytest.mark.parametrize("mix", [mix for mix in MIXES if mix != "convolution"])
@pytest.mark.parametrize("attention", ["global", "spatial_reduction"])
@pytest.mark.parametrize("proj", [True, False])
def test_a_folded_norm_also_applies_to_tokens(attention, mix, proj):
    part: Any = GlobalAttention if attention == "global" else SpatialReductionAttention
    layer = trained(16, attention=part(16, proj=proj), mix=mix)
    x, tokens = torch.randn(2, 16, 6, 5).double(), torch.randn(2, 3, 16).double()
    y, u = layer.forward_tokens(x, tokens)
    scale, shift = torch.randn(16).double(), torch.randn(16).double()
    taken = layer.absorb_affine(scale, shift)
    assert taken == (attention == "global" or mix == "attention")
    if taken:
        y, u = scale[:, None, None] * y + shift[:, None, None], scale * u + shift
    ours = layer.forward_tokens(x, tokens)
    torch.testing.assert_close(ours, (y, u), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_batch_may_be_empty(attention):
    layer = trained(attention=attention)
    for _ in range(2):
        assert layer(torch.zeros(0, 12, 9, 7).double()).shape == (0, 16, 9, 7)
        layer.reparameterize()


def test_the_border_of_the_map_takes_no_second_map():
    layer: Any = ACmix(8, mix="convolution", attention="global").eval()
    layer.reparameterize()
    with Calls() as calls, torch.no_grad():
        layer.direct(torch.randn(2, 8, 9, 7))
    assert calls.count["add_"] == 1
    assert not calls.count["add"]


def test_a_projection_with_a_hook_is_still_called():
    layer, seen = trained(window_size=3, mix="convolution"), []
    layer.q_proj.register_forward_hook(lambda *args: seen.append(args))
    assert_same_when_folded(layer)
    assert len(seen) == 4  # the layer and its copy, twice each
