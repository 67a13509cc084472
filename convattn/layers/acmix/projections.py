"""The projections of ACmix: three 1x1 convolutions compute q, k and v of one or two maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

from torch import Tensor, nn

from convattn.layers.foldable import is_bare


@dataclass
class Projections:
    """``q, k, v = W_q x + b_q, W_k c + b_k, W_v c + b_v`` of a map x and its context c.

    ACmix creates this object at each use, from its current submodules.
    """

    q: nn.Conv2d
    k: nn.Conv2d
    v: nn.Conv2d

    @property
    def layers(self) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
        """The three convolutions."""
        return self.q, self.k, self.v

    @property
    def weights(self) -> list[Tensor]:
        """The weights of q, k and v, such as (C_q, C_in, 1, 1), if they `are_readable`."""
        return [layer.weight for layer in self.layers]

    @property
    def biases(self) -> list[Tensor | None]:
        """The biases of q, k and v, such as (C_q,), or None, if they `are_readable`."""
        return [layer.bias for layer in self.layers]

    def are_readable(self) -> bool:
        """Return whether the three layers compute only what weights and biases define."""
        return is_pointwise(self.q) and is_pointwise(self.k) and is_pointwise(self.v)

    def __call__(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v: (B, C_q, H, W), (B, C_k, h, w), (B, C_v, h, w)."""
        return self.q(x), self.k(context), self.v(context)


def is_pointwise(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Return whether a layer is a 1x1 convolution that computes only what its weights define.

    The class must be ``nn.Conv2d`` itself: a subclass, such as one with parametrized weights, may
    compute something else.
    """
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.groups == 1
        and layer.padding == (0, 0)
        and is_bare(layer)
    )
