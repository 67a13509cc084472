"""The projections of ACmix: three 1x1 convolutions make q, k and v of one map, or of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

from torch import Tensor, nn

from convattn.layers.foldable import is_bare


@dataclass
class Projections:
    """``q, k, v = W_q x + b_q, W_k c + b_k, W_v c + b_v`` of a map x and its context c.

    ACmix makes this object at each use, from the submodules that it has then.
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
        """The weights (C_q, C_in, 1, 1) and so on, where they `are_readable`."""
        return [layer.weight for layer in self.layers]

    @property
    def biases(self) -> list[Tensor | None]:
        """The biases (C_q,) and so on, or None, where they `are_readable`."""
        return [layer.bias for layer in self.layers]

    def are_readable(self) -> bool:
        """Whether weights and biases say all that calls of the three layers compute."""
        return is_pointwise(self.q) and is_pointwise(self.k) and is_pointwise(self.v)

    def __call__(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v: (B, C_q, H, W), (B, C_k, h, w), (B, C_v, h, w)."""
        return self.q(x), self.k(context), self.v(context)


def is_pointwise(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a 1x1 convolution whose weight and bias say all that a call computes.

    A class that is derived from ``nn.Conv2d``, as one with parametrized weights is, may compute
    something else.
    """
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.groups == 1
        and layer.padding == (0, 0)
        and is_bare(layer)
    )
