"""Every path of every operator: it computes what the reference does, or refuses with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import convattn  # noqa: F401  # whose operators are listed
from convattn.ops.acmix.convolution import ConvolutionCall
from convattn.ops.convolution.depthwise import DepthwiseCall
from convattn.ops.convolution.feed_forward import FeedForwardCall
from convattn.ops.convolution.gelu import ConvGeluCall
from convattn.ops.dispatch import OPERATORS, Call
from convattn.ops.glmix.calls import ClusterAndDispatchCall, ClusteringCall, DispatchCall
from convattn.ops.glmix.directions import DirectionsCall
from convattn.ops.global_.attention import GlobalCall
from convattn.ops.kernels.native.library import available
from convattn.ops.patchwise.aggregate import PatchCall
from convattn.ops.resampling.bins import BinsCall
from convattn.ops.resampling.resize import ResizeCall
from convattn.ops.sliding.attention import SlidingCall
from convattn.ops.tokens.heads import HeadsCall
from convattn.ops.tokens.layer_norm import AddLayerNormCall, LayerNormCall
from convattn.ops.tokens.linear import LinearCall
from convattn.ops.windows.attention import MapWindowCall, WindowCall
from convattn.ops.xvolution.pixel_shift import ShiftCall
from tests.compare import assert_close


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _pixels(x: Callable[..., Tensor]) -> Tensor:
    return x(1, 8, 3, 5).permute(0, 2, 3, 1)


Build = Callable[[Callable[..., Tensor]], Call]
EXAMPLES: dict[str, Build] = {
    "sliding_window_attention": lambda x: SlidingCall(
        x(2, 8, 11, 9), x(2, 8, 11, 9), x(2, 8, 11, 9), x(1, 4, 11, 9), 2, 3, 1, 1, None
    ),
    "window_attention": lambda x: WindowCall(
        x(2, 8, 7, 5), x(2, 8, 7, 5), x(2, 8, 7, 5), x(2, 9, 9), 2, 3, (1, 1), None
    ),
    "map_window_attention": lambda x: MapWindowCall(
        x(2, 6, 7, 5), x(24, 6, 1, 1, scale=0.2), x(24, scale=0.2), x(2, 9, 9), 2, 3, (1, 1), None
    ),
    "global_attention": lambda x: GlobalCall(x(2, 8, 7, 5), x(2, 8, 3, 4), x(2, 8, 3, 4), 2, None),
    "patchwise_aggregate": lambda x: PatchCall(x(2, 4, 9, 4, 3), x(2, 8, 7, 5), 3, 2, 1),
    "soft_clustering": lambda x: ClusteringCall(x(2, 5, 8), x(2, 8, 7, 6), 2.5),
    "dispatch": lambda x: DispatchCall(x(2, 5, 8), x(2, 5, 8), x(2, 8, 7, 6), 2.5),
    "cluster_and_dispatch": lambda x: ClusterAndDispatchCall(
        x(2, 5, 8), x(2, 8, 7, 6), 2.5, lambda slots: slots.flip(1) + slots, 1
    ),
    "scaled_directions": lambda x: DirectionsCall(x(2, 5, 8), 2.5),
    "average_bins": lambda x: BinsCall(x(2, 8, 7, 6), (3, 4)),
    "resize": lambda x: ResizeCall(_wide(x(2, 8, 7, 6)), (5, 9), "bicubic"),
    "attend_heads": lambda x: HeadsCall(x(2, 11, 48), 2),
    "linear": lambda x: LinearCall(x(2, 11, 8), x(6, 8, scale=0.3), x(6)),
    "layer_norm_2d": lambda x: LayerNormCall(_pixels(x), x(8), x(8), (8,), 1e-6),
    "add_layer_norm_2d": lambda x: AddLayerNormCall(_pixels(x), _pixels(x), x(8), x(8), (8,), 1e-6),
    "conv2d_gelu": lambda x: ConvGeluCall(x(2, 8, 7, 5), x(6, 8, 1, 1, scale=0.3), x(6), 0, 1),
    "depthwise_conv2d": lambda x: DepthwiseCall(
        x(2, 8, 7, 5), x(8, 1, 5, 5, scale=0.2), x(8), 1, 2, 1
    ),
    "feed_forward": lambda x: FeedForwardCall(
        x(3, 8, 3, 2, scale=0.5),
        *(x(12, 8, 1, 1, scale=0.3), x(12, scale=0.5)),
        *(x(12, 1, 3, 3, scale=0.3), x(12)),
        *(x(8, 12, 1, 1, scale=0.3), x(8)),
    ),
    "acmix_convolution": lambda x: ConvolutionCall(
        *(x(1, 8, 4, 3, scale=0.5), x(1, 8, 4, 3, scale=0.5), x(1, 8, 4, 3, scale=0.5)),
        *(x(9, 6, scale=0.3), x(8, 9, 3, 3, scale=0.1), x(9, scale=0.5)),
        *(4, 1, 1),
    ),
    "pixel_shift_attention": lambda x: ShiftCall(
        x(2, 8, 7, 5), x(2, 8, 7, 5), x(2, 8, 7, 5), 2, 3, 1, 2, 0.1
    ),
}
# Their calls have sizes alone, not the weights that a path folds: tests/ops/acmix has their tests.
CHOICES = ("convolution_path", "fold_map_convolution")
PATHS = [(name, path) for name in EXAMPLES for path in OPERATORS[name].backends]
NEED_HARDWARE = ("triton", "native", "onednn", "conv", "parts", "threes")
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def _call(name: str, dtype: torch.dtype, *, grad: bool) -> Call:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, scale: float = 1.0) -> Tensor:
        x = torch.randn(shape, generator=generator, dtype=torch.float64).mul(scale).to(dtype)
        if len(shape) == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x.requires_grad_(grad)

    return EXAMPLES[name](make)


def _results(name: str, path: str, call: Call) -> list[Tensor]:
    """Return what an operator computes, and its gradients."""
    result = OPERATORS[name](call, path)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    if not call.grad:
        return outputs
    inputs = [t for t in call.tensors if t is not None]
    generator = torch.Generator().manual_seed(1)
    ways = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in outputs]
    total = sum((y.double() * way).sum() for y, way in zip(outputs, ways, strict=True))
    assert isinstance(total, Tensor)
    return [*outputs, *torch.autograd.grad(total, inputs, allow_unused=True)]


def test_every_operator_has_an_example():
    assert {*EXAMPLES, *CHOICES} == set(OPERATORS)


def test_every_path_says_why_it_is_there():
    for name, operator in OPERATORS.items():
        assert all(path.because for path in operator.paths), name


@pytest.mark.parametrize(("name", "path"), PATHS)
def test_a_path_computes_what_the_reference_does_or_refuses(name, path):
    computed = 0
    for dtype in DTYPES:
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                computed += _compare(name, path, dtype, grad=grad)
    if not computed:
        assert path in NEED_HARDWARE, "a path that refuses all calls is not tested"
        assert path != "native" or not available()
        pytest.skip("no GPU, no C compiler, or a processor without the instructions")


def _compare(name: str, path: str, dtype: torch.dtype, *, grad: bool) -> bool:
    """Compare a path with the reference; return False if the path refuses the call."""
    call: Any = _call(name, dtype, grad=grad)
    operator = OPERATORS[name]
    if operator[path].refuses(call) is not None:
        with pytest.raises(ValueError, match="cannot compute this call"):
            operator(call, path)
        return False
    found = _results(name, path, call)
    expected = _results(name, "reference", _call(name, torch.float64, grad=grad))
    like = _results(name, "reference", call)
    for ours, theirs, typed in zip(found, expected, like, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert (ours.dtype, ours.shape) == (typed.dtype, typed.shape)
            assert_close(ours.double(), theirs, dtype)
    return True
