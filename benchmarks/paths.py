"""Which path of an operator "auto" takes, asked of the operators themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convattn.ops.acmix.convolution import ConvolutionCall
from convattn.ops.acmix.folding import FoldCall
from convattn.ops.acmix.from_map import MapCall
from convattn.ops.convolution.depthwise import DepthwiseCall
from convattn.ops.convolution.feed_forward import FeedForwardCall
from convattn.ops.convolution.gelu import ConvGeluCall
from convattn.ops.dispatch import OPERATORS, Call
from convattn.ops.glmix.calls import ClusterAndDispatchCall, ClusteringCall, DispatchCall
from convattn.ops.glmix.directions import DirectionsCall
from convattn.ops.global_.attention import GlobalCall
from convattn.ops.patchwise.aggregate import PatchCall
from convattn.ops.resampling.bins import BinsCall
from convattn.ops.resampling.resize import ResizeCall
from convattn.ops.sliding.attention import SlidingCall
from convattn.ops.tokens.heads import HeadsCall
from convattn.ops.tokens.layer_norm import AddLayerNormCall, LayerNormCall
from convattn.ops.tokens.linear import LinearCall
from convattn.ops.windows.attention import MapWindowCall, WindowCall
from convattn.ops.xvolution.pixel_shift import ShiftCall

_F32, _BF16 = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Situation:
    """What a choice depends on beside sizes; ``facts`` replace properties of the call."""

    dtype: torch.dtype = _F32
    grad: bool = False
    facts: tuple[tuple[str, Any], ...] = ()


# By the heads of their columns.
SITUATIONS = {
    "float32": Situation(),
    "bfloat16": Situation(_BF16),
    "float32, gradients": Situation(grad=True),
    "bfloat16, gradients": Situation(_BF16, grad=True),
    "GPU": Situation(_BF16, facts=(("device", "cuda"), ("on_cpu", False), ("devices", "cuda"))),
    "exported": Situation(facts=(("exporting", True), ("exported", True), ("compiling", True))),
}

Make = Callable[..., Tensor]  # a tensor of a shape, in the type of the situation


@dataclass(frozen=True)
class Entry:
    """A row of the page: an operator at one size."""

    name: str
    size: str
    operator: str
    build: Callable[[Make], Call]


def _sliding(x: Make, size: int) -> SlidingCall:
    q, k, v = (x(1, 8, size, size) for _ in range(3))
    return SlidingCall(q, k, v, None, num_heads=1, window_size=7, stride=1, dilation=1, scale=None)


def _windows(x: Make) -> WindowCall:
    q, k, v = (x(1, 8, 56, 56) for _ in range(3))
    return WindowCall(q, k, v, None, num_heads=1, window_size=7, shift=(0, 0), scale=None)


def _map_windows(x: Make) -> MapWindowCall:
    tensors = x(1, 8, 56, 56), x(24, 8, 1, 1), None, None
    return MapWindowCall(*tensors, num_heads=1, window_size=7, shift=(0, 0), scale=None)


def _global(x: Make) -> GlobalCall:
    q, k, v = (x(1, 8, 14, 14) for _ in range(3))
    return GlobalCall(q, k, v, num_heads=1, scale=None)


def _patches(x: Make) -> PatchCall:
    return PatchCall(x(1, 2, 9, 14, 14), x(1, 8, 14, 14), kernel_size=3, stride=1, dilation=1)


def _shift(x: Make) -> ShiftCall:
    q, k, v = (x(1, 8, 28, 28) for _ in range(3))
    return ShiftCall(q, k, v, num_heads=1, kernel_size=3, distance=1, stride=1, scale=1.0)


def _slots(x: Make) -> ClusterAndDispatchCall:
    prototypes = x(1, 64, 8)
    return ClusterAndDispatchCall(prototypes, x(1, 8, 56, 56), 1.0, lambda slots: slots, 1)


def _clustering(x: Make) -> ClusteringCall:
    return ClusteringCall(x(1, 64, 8), x(1, 8, 56, 56), 1.0)


def _dispatching(x: Make) -> DispatchCall:
    return DispatchCall(x(1, 64, 8), x(1, 64, 8), x(1, 8, 56, 56), 1.0)


def _depthwise(x: Make, kernel: int) -> DepthwiseCall:
    weight, bias = x(96, 1, kernel, kernel), x(96)
    return DepthwiseCall(x(1, 96, 56, 56), weight, bias, stride=1, padding=kernel // 2, dilation=1)


def _linear(x: Make, tokens: int) -> LinearCall:
    return LinearCall(x(8, tokens // 8, 256), x(768, 256), x(768))


def _norm(x: Make) -> LayerNormCall:
    pixels = x(1, 64, 56, 56).permute(0, 2, 3, 1)
    return LayerNormCall(pixels, x(64), x(64), shape=(64,), eps=1e-6)


def _sum_and_norm(x: Make) -> AddLayerNormCall:
    pixels, branch = (x(1, 64, 56, 56).permute(0, 2, 3, 1) for _ in range(2))
    return AddLayerNormCall(pixels, branch, x(64), x(64), shape=(64,), eps=1e-6)


def _conv_gelu(x: Make) -> ConvGeluCall:
    return ConvGeluCall(x(1, 64, 56, 56), x(192, 64, 1, 1), x(192), padding=0, groups=1)


def _feed_forward(x: Make, size: int) -> FeedForwardCall:
    first, last = (x(192, 64, 1, 1), x(192)), (x(64, 192, 1, 1), x(64))
    return FeedForwardCall(x(8, 64, size, size), *first, None, None, *last)


def _convolution(
    x: Make, channels: int, outputs: int, *, stride: int = 1, alone: bool = False
) -> MapCall:
    return MapCall(x(1, channels, 14, 14), outputs, stride, alone)


def _from_qkv(x: Make, heads: int) -> ConvolutionCall:
    q, k, v = (x(1, 8 * heads, 14, 14) for _ in range(3))
    weights = x(9, 3 * heads, 1, 1), x(8 * heads, 9, 3, 3)
    return ConvolutionCall(q, k, v, *weights, None, head_dim=8, stride=1, dilation=1)


_ACMIX = ("ACmix: convolution", "convolution_path")
_SLIDING = "sliding_window_attention"
ENTRIES = (
    Entry("sliding window 7x7", "9x9 and smaller", _SLIDING, lambda x: _sliding(x, 9)),
    Entry("sliding window 7x7", "12x12", _SLIDING, lambda x: _sliding(x, 12)),
    Entry("sliding window 7x7", "18x18", _SLIDING, lambda x: _sliding(x, 18)),
    Entry("sliding window 7x7", "larger", _SLIDING, lambda x: _sliding(x, 28)),
    Entry("GLMix: clustering and dispatching", "any", "cluster_and_dispatch", _slots),
    Entry("GLMix: clustering alone", "any", "soft_clustering", _clustering),
    Entry("GLMix: dispatching alone", "any", "dispatch", _dispatching),
    Entry("averages of bins", "any", "average_bins", lambda x: BinsCall(x(1, 8, 56, 56), (8, 8))),
    Entry(
        "interpolation",
        "any",
        "resize",
        lambda x: ResizeCall(x(1, 8, 14, 14), (16, 16), "bilinear"),
    ),
    Entry(
        "directions of slots", "any", "scaled_directions", lambda x: DirectionsCall(x(1, 64, 8), 1)
    ),
    Entry("pixel shift", "any", "pixel_shift_attention", _shift),
    Entry("windows", "any", "window_attention", _windows),
    Entry("windows of a map", "any", "map_window_attention", _map_windows),
    Entry("global attention", "any", "global_attention", _global),
    Entry("patch-wise aggregation", "any", "patchwise_aggregate", _patches),
    Entry(_ACMIX[0], "64 channels", _ACMIX[1], lambda x: _convolution(x, 64, 4)),
    Entry(_ACMIX[0], "128, stride 2", _ACMIX[1], lambda x: _convolution(x, 128, 4, stride=2)),
    Entry(_ACMIX[0], "192, 6 heads", _ACMIX[1], lambda x: _convolution(x, 192, 6)),
    Entry(_ACMIX[0], "256, 4 heads", _ACMIX[1], lambda x: _convolution(x, 256, 4)),
    Entry(
        _ACMIX[0],
        "256, 4 heads, no attention",
        _ACMIX[1],
        lambda x: _convolution(x, 256, 4, alone=True),
    ),
    Entry("ACmix: q, k and v", "4 heads", "acmix_convolution", lambda x: _from_qkv(x, 4)),
    Entry("ACmix: q, k and v", "8 heads", "acmix_convolution", lambda x: _from_qkv(x, 8)),
    Entry(
        "ACmix deployed",
        "64, 4 heads",
        "fold_map_convolution",
        lambda x: FoldCall(64, 16, 9, 4, 3, 1),
    ),
    Entry(
        "ACmix deployed",
        "256, 4 heads",
        "fold_map_convolution",
        lambda x: FoldCall(256, 64, 9, 4, 3, 1),
    ),
    Entry("heads of GLNet", "64 tokens", "attend_heads", lambda x: HeadsCall(x(8, 64, 288), 3)),
    Entry("heads of GLNet", "196 tokens", "attend_heads", lambda x: HeadsCall(x(8, 196, 1152), 12)),
    Entry("depth-wise convolution", "3x3", "depthwise_conv2d", lambda x: _depthwise(x, 3)),
    Entry("depth-wise convolution", "5x5", "depthwise_conv2d", lambda x: _depthwise(x, 5)),
    Entry("linear layers of heads", "512 tokens", "linear", lambda x: _linear(x, 512)),
    Entry("linear layers of heads", "1568 tokens", "linear", lambda x: _linear(x, 1568)),
    Entry("layer norm", "any", "layer_norm_2d", _norm),
    Entry("sum and layer norm", "any", "add_layer_norm_2d", _sum_and_norm),
    Entry("convolution and GELU", "any", "conv2d_gelu", _conv_gelu),
    Entry("feed-forward network", "8 of 28x28", "feed_forward", lambda x: _feed_forward(x, 28)),
    Entry("feed-forward network", "8 of 56x56", "feed_forward", lambda x: _feed_forward(x, 56)),
)


def path_rows() -> list[tuple[str, ...]]:
    """Return operator, size and the path for each of the situations, with two threads."""
    with _two_threads():
        return [
            (entry.name, entry.size, *(f"`{chosen(entry, how)}`" for how in SITUATIONS.values()))
            for entry in ENTRIES
        ]


def chosen(entry: Entry, situation: Situation) -> str:
    """Return the path that "auto" takes."""

    def make(*shape: int) -> Tensor:
        x = torch.empty(shape, dtype=situation.dtype, requires_grad=situation.grad)
        return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x

    with torch.set_grad_enabled(situation.grad):
        call = entry.build(make)
        call.__class__ = type(type(call).__name__, (type(call),), dict(situation.facts))
        return OPERATORS[entry.operator].choose(call).name


def reasons() -> list[str]:
    """Return what every operator says of its paths, in the order in which they are asked."""
    names = {entry.operator: entry.name for entry in ENTRIES}
    return [
        f"**{name}:** " + "; ".join(f"`{p.name}` - {p.because}" for p in OPERATORS[operator].paths)
        for operator, name in names.items()
    ]


@contextmanager
def _two_threads() -> Iterator[None]:
    """A preference may ask how many threads there are: the page is that of more than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)
