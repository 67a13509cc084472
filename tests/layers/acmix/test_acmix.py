from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convattn import load_official
from convattn.layers import (
    ACmix,
    AttentionPart,
    GlobalAttention,
    SpatialReductionAttention,
)
from convattn.layers.acmix.convolution import SHIFTS
from convattn.layers.acmix.mixes import MIXES
from convattn.layers.attention.choice import ATTENTIONS
from convattn.ops import use_backend
from convattn.ops.fuse import shift_kernels
from tests.compare import assert_close
from tests.golden import Fixture, relative_error
from tests.layers.properties import LayerProperties, randomise
from tests.memory import largest_tensor, saved_for_backward


class TestSlidingWindow(LayerProperties):
    def build(self, backend: str = "auto") -> nn.Module:
        return ACmix(16, window_size=5, backend=backend)


class TestSlidingWindowWithStride(LayerProperties):
    out_channels, stride = 24, 2

    def build(self, backend: str = "auto") -> nn.Module:
        return ACmix(16, 24, num_heads=3, stride=2, dilation=2, kernel_size=5, backend=backend)


class TestWindow(LayerProperties):
    def build(self, backend: str = "auto") -> nn.Module:
        return ACmix(16, attention="window", window_size=4, fc_bias=True, backend=backend)


class TestShiftedWindowWithStride(LayerProperties):
    stride = 3

    def build(self, backend: str = "auto") -> nn.Module:
        return ACmix(16, attention="shifted_window", window_size=4, stride=3, backend=backend)


class TestGlobal(LayerProperties):
    stride = 2

    def build(self, backend: str = "auto") -> nn.Module:
        return ACmix(16, attention="global", stride=2, shift="fixed", backend=backend)


class TestSpatialReduction(LayerProperties):
    out_channels, stride = 24, 2

    def build(self, backend: str = "auto") -> nn.Module:
        attention = "spatial_reduction"
        return ACmix(16, 24, attention=attention, reduction=4, stride=2, backend=backend)


class TestPatchwise(LayerProperties):
    stride = 2

    def build(self, backend: str = "auto") -> nn.Module:
        return ACmix(16, attention="patchwise", window_size=3, stride=2, backend=backend)


class TestShiftedTensors(LayerProperties):
    def build(self, backend: str = "auto") -> nn.Module:
        return ACmix(16, window_size=3, shift="tensor", mix="complement", backend=backend)


PUBLISHED: dict[str, dict[str, Any]] = {
    "acmix_local": {"in_chans": 32},
    "acmix_local_widen": {"in_chans": 24, "out_chans": 32},
    "acmix_local_stride2": {"in_chans": 32, "stride": 2},
    "acmix_window": {"in_chans": 24, "attention": "window", "num_heads": 3, "fc_bias": True},
}


def _run(name: str, x: Tensor, layer: nn.Module) -> Tensor:
    """Call the layer as the authors' code is called: windows on channels-last maps."""
    if name == "acmix_window":
        return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return layer(x)


def _published(name: str, dtype: torch.dtype) -> tuple[Fixture, ACmix]:
    fixture, layer = Fixture(name), ACmix(**PUBLISHED[name]).to(dtype)
    load_official(layer, fixture.state(dtype))
    return fixture, layer


@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_computes_what_the_published_code_computes(name, dtype, error, backend):
    fixture, layer = _published(name, dtype)
    with use_backend(backend):
        output = _run(name, fixture.images(dtype), layer)
    assert relative_error(output, fixture.output()) < error


@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", ["acmix_local", "acmix_window"])
def test_its_gradients_are_those_of_the_published_code(name, dtype, error, backend):
    fixture, layer = _published(name, dtype)
    x = fixture.images(dtype).requires_grad_()
    with use_backend(backend):
        (_run(name, x, layer) * fixture.probe(dtype)).sum().backward()
    # gradients travel under the published names as weights do: let the import rename them
    renamed = ACmix(**PUBLISHED[name]).double()
    published = fixture.gradients()
    assert x.grad is not None
    assert relative_error(x.grad, published.pop("input")) < error
    load_official(renamed, published)
    largest = max(p.abs().max() for p in renamed.parameters())
    for (parameter, ours), theirs in zip(
        layer.named_parameters(), renamed.parameters(), strict=True
    ):
        assert ours.grad is not None, parameter
        if parameter == "attn.pos_proj.bias":  # softmax cancels it: zero but for rounding
            assert ours.grad.abs().max() < error * largest
            assert theirs.abs().max() < 1e-12 * largest
        elif theirs.numel() == 1:
            torch.testing.assert_close(ours.grad, theirs.to(dtype), rtol=error, atol=0)
        else:
            assert relative_error(ours.grad, theirs) < error, parameter


FROZEN = {
    "q_proj.weight",
    "q_proj.bias",
    "k_proj.weight",
    "k_proj.bias",
    "v_proj.weight",
    "v_proj.bias",
    "fc.weight",
    "dep_conv.weight",
    "alpha",
    "beta",
}
PART_NAMES = {
    "sliding_window": {"pos_proj.weight", "pos_proj.bias"},
    "window": {"relative_position_bias_table", "proj.weight", "proj.bias"},
    "shifted_window": {"relative_position_bias_table", "proj.weight", "proj.bias"},
    "global": set(),
    "spatial_reduction": {"reduce.weight", "reduce.bias", "norm.weight", "norm.bias"},
    "patchwise": {
        *(f"mlp.{i}.{name}" for i in (0, 3) for name in ("weight", "bias")),
        *(f"mlp.{i}.running_{name}" for i in (0, 3) for name in ("mean", "var")),
        *(f"mlp.{i}.num_batches_tracked" for i in (0, 3)),
        *("mlp.2.weight", "mlp.5.weight", "mlp.5.bias"),
    },
}


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_names_of_the_state_dict_are_frozen(attention):
    layer = ACmix(16, attention=attention)
    assert set(layer.state_dict()) == FROZEN | {f"attn.{n}" for n in PART_NAMES[attention]}


def _count(**arguments: Any) -> int:
    return sum(p.numel() for p in ACmix(64, **arguments).parameters())


def test_each_mix_has_its_parameters_and_no_others():
    projections, attention, convolution = 3 * (64 * 64 + 64), 2 * 16 + 16, 12 * 9 + 64 * 81
    both = projections + attention + convolution
    counts = {mix: _count(mix=mix) for mix in MIXES}
    assert counts == {
        "learned": both + 2,
        "complement": both + 1,
        "learned_alpha": both + 1,
        "sum": both,
        "attention": projections + attention,
        "convolution": projections + convolution,
    }
    shifts = {shift: _count(mix="sum", shift=shift) for shift in SHIFTS}
    without = both - 64 * 81
    assert shifts == {"learned": both, "random": both, "fixed": without, "tensor": without}


@pytest.mark.parametrize(
    ("mix", "alpha", "beta"),
    [
        ("learned", 0.3, 0.7),
        ("complement", 0.3, 0.7),
        ("learned_alpha", 0.3, 1.0),
        ("sum", 1.0, 1.0),
        ("attention", 1.0, 0.0),
        ("convolution", 0.0, 1.0),
    ],
)
def test_each_mix_weighs_the_paths_as_it_says(mix, alpha, beta):
    paths = {name: _with_the_same_weights(mix=name) for name in ("attention", "convolution", mix)}
    layer = paths[mix]
    for name, value in (("alpha", 0.3), ("beta", 0.7)):
        if isinstance(getattr(layer, name), nn.Parameter):
            getattr(layer, name).data.fill_(value)
    x = torch.randn(2, 16, 9, 7).double()
    expected = alpha * paths["attention"](x) + beta * paths["convolution"](x)
    assert_close(layer(x), expected, torch.float64)


def _with_the_same_weights(**arguments: Any) -> ACmix:
    source = randomise(ACmix(16, window_size=3)).state_dict()
    layer = ACmix(16, **({"window_size": 3} | arguments)).double()
    own = layer.state_dict()
    layer.load_state_dict({name: source[name] for name in own})
    return layer


def test_the_learnt_factors_start_at_a_half():
    layer = ACmix(16)
    for name in ("alpha", "beta"):
        assert torch.equal(layer.get_parameter(name), torch.full((1,), 0.5))


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_all_shifts_except_random_are_equal_at_initialization(kernel_size):
    x = torch.randn(2, 16, 9, 7).double()
    outputs = {}
    for shift in SHIFTS:
        torch.manual_seed(7)
        layer = ACmix(16, mix="convolution", shift=shift, kernel_size=kernel_size, stride=2)
        outputs[shift] = layer.double()(x)
    assert_close(outputs["fixed"], outputs["learned"], torch.float64)
    assert_close(outputs["tensor"], outputs["learned"], torch.float64)
    assert not torch.allclose(outputs["random"], outputs["learned"], atol=1e-3)


def test_the_start_at_the_shifts_survives_a_model_builder():
    model = nn.Sequential(ACmix(16), ACmix(16, shift="random"))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    for layer in model:
        assert isinstance(layer, ACmix)
        nn.init.zeros_(layer.get_parameter("alpha"))
        layer.reset_parameters()
        assert layer.get_parameter("alpha").item() == 0.5
    shifts = shift_kernels(3, 16)
    assert torch.equal(model[0].get_parameter("dep_conv.weight"), shifts)
    assert not torch.equal(model[1].get_parameter("dep_conv.weight"), shifts)


def test_a_builder_that_resets_every_module_keeps_the_shifts():
    layer = ACmix(16)
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    assert torch.equal(layer.get_parameter("dep_conv.weight"), shift_kernels(3, 16))


@pytest.mark.parametrize("attention", ["window", "shifted_window"])
def test_windows_with_a_stride_are_sampled(attention):
    full, sampled = (
        randomise(ACmix(16, attention=attention, window_size=4, stride=stride)).eval()
        for stride in (1, 2)
    )
    x = torch.randn(2, 16, 11, 10)
    assert_close(sampled(x), full(x)[:, :, ::2, ::2], torch.float32)


def test_a_shifted_window_reads_across_the_border_of_unshifted_windows():
    layer = randomise(ACmix(16, attention="shifted_window", window_size=4, mix="attention"))
    x = torch.randn(1, 16, 12, 12, requires_grad=True)
    layer(x)[0, :, 5, 2].sum().backward()
    assert x.grad is not None
    rows, columns = (x.grad.abs().sum(dim=(0, 1, axis)).nonzero().flatten() for axis in (3, 2))
    # the grid of windows is moved by two: rows 2 to 5 and columns 2 to 5
    assert (rows.tolist(), columns.tolist()) == ([2, 3, 4, 5], [2, 3, 4, 5])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_border_of_a_shifted_grid_is_one_window_on_any_size(backend):
    layer = ACmix(16, attention="shifted_window", window_size=4, mix="attention", backend=backend)
    seen = []
    for size in range(5, 13):
        x = torch.randn(1, 16, size, size, requires_grad=True)
        (gradient,) = torch.autograd.grad(randomise(layer)(x)[0, :, 0, 1].sum(), x)
        rows, columns = (gradient.abs().sum(dim=(0, 1, d)).nonzero().flatten() for d in (3, 2))
        seen.append((rows.tolist(), columns.tolist()))
    # the grid of windows is moved by two: its first window shows rows and columns 0 and 1
    assert seen == 8 * [([0, 1], [0, 1])]


def test_the_dilation_reaches_both_paths():
    for mix in ("attention", "convolution"):
        layer = randomise(ACmix(16, window_size=3, dilation=4, mix=mix))
        x = torch.randn(1, 16, 13, 13, requires_grad=True)
        layer(x)[0, :, 6, 6].sum().backward()
        assert x.grad is not None
        rows = x.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
        assert rows.tolist() == [2, 6, 10]


def test_spatial_reduction_projects_keys_from_the_reduced_map():
    layer = ACmix(16, attention="spatial_reduction", reduction=4)
    sizes: list[torch.Size] = []
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
        projection.register_forward_hook(lambda _, __, y: sizes.append(y.shape[2:]))
    layer(torch.randn(1, 16, 8, 12))
    assert sizes == [(8, 12), (2, 3), (2, 3)]


class MeanAttention(AttentionPart):
    """What a user may plug in: every pixel gets the mean of the values."""

    def __init__(self, dim: int, stride: int = 1) -> None:
        super().__init__((2, 2, 2), stride=stride, dim=dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mean = v.mean(dim=(2, 3), keepdim=True)
        return mean.expand_as(v)[:, :, :: self.stride, :: self.stride]


@pytest.mark.parametrize(
    "attention",
    [
        MeanAttention,
        MeanAttention(16),
        MeanAttention(16, stride=2),
        functools.partial(MeanAttention, stride=2),
        functools.partial(SpatialReductionAttention, num_heads=2, reduction=3),
        GlobalAttention(16, num_heads=1, stride=2),
    ],
)
def test_any_attention_can_be_plugged_in(attention):
    layer = randomise(ACmix(16, attention=attention, stride=2)).double()
    x = torch.randn(2, 16, 9, 7).double()
    y = layer(x)
    assert y.shape == (2, 16, 5, 4)
    attended = ACmix(16, attention=attention, stride=2, mix="attention").double()
    attended.load_state_dict(layer.state_dict(), strict=False)
    if isinstance(layer.attn, MeanAttention):
        mean = layer.v_proj(x).mean(dim=(2, 3), keepdim=True)
        assert_close(attended(x), mean.expand_as(y), torch.float64)


@pytest.mark.parametrize("c2", [None, 16, 32])
def test_only_the_channels_are_required(c2):
    assert ACmix(16, c2)(torch.randn(1, 16, 5, 3)).shape == (1, c2 or 16, 5, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_the_sum_in_half_precision(dtype):
    layer = ACmix(16)
    with torch.autocast("cpu", dtype=dtype):
        assert layer(torch.randn(1, 16, 9, 7)).dtype == dtype


def test_no_copy_of_keys_for_every_window_is_made_or_kept():
    x = torch.randn(2, 16, 28, 28, requires_grad=True)
    copies = 49 * 4 * x.numel()
    fast, plain = ACmix(16), ACmix(16, backend="reference")
    assert largest_tensor(lambda: fast(x)) < copies / 9 < copies <= largest_tensor(lambda: plain(x))
    assert saved_for_backward(lambda: fast(x)) < copies / 2
    assert saved_for_backward(lambda: plain(x)) > 2 * copies


def test_a_deployed_layer_projects_only_the_queries_of_its_stride():
    acmix = ACmix(16, 16, num_heads=2, stride=2).eval()
    x = torch.randn(1, 16, 9, 12)
    trained = acmix(x)
    acmix.reparameterize()
    sizes: list[torch.Size] = []
    acmix.attn.register_forward_pre_hook(lambda _, qkv: sizes.extend(x.shape[2:] for x in qkv))
    assert_close(acmix(x), trained, torch.float32)
    assert sizes == [(5, 6), (9, 12), (9, 12)]
