"""Check that this machine computes the operators correctly: each operator once, on a small map.

The results of the paths in other dtypes are compared with the reference in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.dispatch import use_backend
from convattn.ops.glmix.slots import cluster_and_dispatch, pool_slots
from convattn.ops.sliding.attention import sliding_window_attention
from convattn.ops.tokens.layer_norm import layer_norm_2d
from convattn.ops.windows.attention import window_attention
from convattn.ops.xvolution.pixel_shift import pixel_shift_attention

# The largest difference that is attributed to rounding, relative to the largest number.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
_CHANNELS, _SIZE = 16, 20


class Check(NamedTuple):
    """The result of the check of one operator in one dtype."""

    operator: str
    dtype: torch.dtype
    difference: float  # from the reference, relative to its largest number
    error: str  # the error of a computation that failed; "" if it did not fail

    @property
    def is_right(self) -> bool:
        """Whether the result differs from that of the reference by rounding at most."""
        return not self.error and self.difference <= TOLERANCES[self.dtype]


def self_check(backend: str = "auto", device: torch.device | str = "cpu") -> Iterator[Check]:
    """Compute each operator in each dtype, and compare the result with the reference.

    Args:
        backend: the path of each operator that has it; see `use_backend`.
        device: where to compute.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, _CHANNELS, _SIZE, _SIZE, generator=generator)
    for name, operator in _OPERATORS.items():
        for dtype in TOLERANCES:
            given = x.to(dtype)
            try:
                difference = _difference(operator, given, backend, device)
            except Exception as error:  # any error of a compiler, a driver or a kernel
                yield Check(name, dtype, 0.0, f"{type(error).__name__}: {error}")
            else:
                yield Check(name, dtype, difference, "")


def _difference(
    operator: Callable[[Tensor], Tensor], x: Tensor, backend: str, device: torch.device | str
) -> float:
    with use_backend("reference"):
        expected = operator(x.double())
    with use_backend(backend):
        found = operator(x.to(device)).cpu().double()
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def _sliding(x: Tensor) -> Tensor:
    return sliding_window_attention(x, x.flip(3), x.flip(2), num_heads=2, window_size=5)


@torch.enable_grad()
def _sliding_gradients(x: Tensor) -> Tensor:
    leaves = [t.clone().requires_grad_() for t in (x, x.flip(3), x.flip(2))]
    y = sliding_window_attention(*leaves, num_heads=2, window_size=5)
    return torch.cat(torch.autograd.grad(y, leaves, x))


@torch.no_grad()
def _pixel_shift(x: Tensor) -> Tensor:
    return pixel_shift_attention(x, x.flip(3), x.flip(2), num_heads=2)


@torch.no_grad()
def _windows(x: Tensor) -> Tensor:
    return window_attention(x, x.flip(3), x.flip(2), num_heads=2, window_size=5)


@torch.no_grad()
def _slots(x: Tensor) -> Tensor:
    return cluster_and_dispatch(pool_slots(x, (3, 3)), x, 4.0, torch.tanh)


@torch.no_grad()
def _layer_norm(x: Tensor) -> Tensor:
    weight = torch.linspace(0.5, 1.5, x.shape[1]).to(x)
    return layer_norm_2d(x, x.shape[1:2], weight, weight - 1, 1e-5)


@torch.no_grad()
def _convolution(x: Tensor) -> Tensor:
    weight = x[0, :, :3, :3].repeat(_CHANNELS, 1, 1, 1)
    return F.conv2d(x, weight, padding=1)


_OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "sliding window": _sliding,
    "its gradients": _sliding_gradients,
    "pixel shift": _pixel_shift,
    "windows": _windows,
    "slots": _slots,
    "layer norm": _layer_norm,
    "convolution": _convolution,
}
