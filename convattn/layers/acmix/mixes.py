"""The weights alpha and beta of ACmix: their initial values, and which are parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Mix:
    """Initial alpha and beta, and which are parameters; beta=None means 1 - alpha."""

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


def times(factor: Tensor | float, x: Tensor) -> Tensor:
    """Multiply a map by a factor; a parameter is cast to the map's dtype, as under autocast."""
    if isinstance(factor, Tensor):
        return factor.to(x.dtype) * x
    return x if factor == 1.0 else factor * x
