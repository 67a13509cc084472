"""The sum of ACmix: where alpha and beta start, and which of the two are parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Mix:
    """Where alpha and beta start, and which are parameters; a beta of None is 1 - alpha."""

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
    """Multiply a map; a parameter takes the type of the map, or autocast would widen the map."""
    if isinstance(factor, Tensor):
        return factor.to(x.dtype) * x
    return x if factor == 1.0 else factor * x
