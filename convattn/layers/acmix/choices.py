"""What ACmix can be told by name: how it mixes its two paths, and how it shifts maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convattn.ops.fuse import shift_kernels

# How the maps of the fully connected layer are shifted and summed.
SHIFTS = ("learned", "random", "fixed", "tensor")


@dataclass(frozen=True)
class Mix:
    """Where alpha and beta start, and which are learnt; without a beta it is 1 - alpha."""

    alpha: float
    beta: float | None
    learnt: tuple[str, ...] = ()

    def factor(self, name: str) -> nn.Parameter | float | None:
        """Return alpha or beta: a parameter, a number, or None."""
        start = getattr(self, name)
        return nn.Parameter(torch.full((1,), start)) if name in self.learnt else start


MIXES = {
    "learned": Mix(0.5, 0.5, learnt=("alpha", "beta")),
    "complement": Mix(0.5, None, learnt=("alpha",)),
    "learned_alpha": Mix(0.5, 1.0, learnt=("alpha",)),
    "sum": Mix(1.0, 1.0),
    "attention": Mix(1.0, 0.0),
    "convolution": Mix(0.0, 1.0),
}


class ShiftConv2d(nn.Conv2d):
    """A group convolution that starts as a sum of shifts, whoever resets it."""

    def reset_parameters(self) -> None:
        """Start at the shifts."""
        with torch.no_grad():
            self.weight.copy_(shift_kernels(self.kernel_size[0], self.out_channels))


def make_group_convolution(
    shift: str, head_dim: int, out_chans: int, kernel_size: int, stride: int, dilation: int
) -> nn.Conv2d | None:
    """Return the convolution from K^2 maps in each of d groups; None where shifts stay shifts."""
    if shift in ("fixed", "tensor"):
        return None
    conv = ShiftConv2d if shift == "learned" else nn.Conv2d
    sizes = (kernel_size, stride, dilation * (kernel_size // 2), dilation)
    return conv(head_dim * kernel_size**2, out_chans, *sizes, groups=head_dim, bias=False)


def times(factor: Tensor | float, x: Tensor) -> Tensor:
    """Give a learnt factor the type of the map, or autocast would widen the map."""
    if isinstance(factor, Tensor):
        return factor.to(x.dtype) * x
    return x if factor == 1.0 else factor * x
