"""The checked arguments of GLMix's operators.

B batch, C channels, H W size of the map, M slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from convattn.ops.dispatch import Call
from convattn.ops.glmix.precision import result_type


class ScaledCall(Call):
    """A call whose option ``scale`` may be a tensor, which may require a gradient."""

    scale: Tensor | float

    @property
    def grad(self) -> bool:
        """Whether gradients are enabled, and a tensor or the scale requires a gradient."""
        if not torch.is_grad_enabled():
            return False
        return super().grad or (isinstance(self.scale, Tensor) and self.scale.requires_grad)

    @property
    def plain(self) -> bool:
        """Whether the tensors are plain, and the scale is a number or a plain tensor."""
        number = isinstance(self.scale, (int, float)) or type(self.scale) in (Tensor, Parameter)
        return number and super().plain


class MapCall(ScaledCall):
    """A call with a map ``u`` (B, C, H, W)."""

    u: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the map, or the dtype of autocast if autocast is enabled."""
        return result_type(self.u)

    @property
    def pixels(self) -> int:
        """The number of pixels of the map; a symbol if sizes are symbols."""
        return self.u.shape[2] * self.u.shape[3]

    @property
    def symbolic(self) -> bool:
        """Whether sizes are symbols, or may be since a program is traced."""
        return self.compiling or not isinstance(self.pixels, int)


@dataclass
class ClusteringCall(MapCall):
    """Arguments of `soft_clustering`."""

    slots: Tensor
    u: Tensor
    scale: Tensor | float


@dataclass
class DispatchCall(MapCall):
    """Arguments of `dispatch`."""

    prototypes: Tensor
    slots: Tensor
    u: Tensor
    scale: Tensor | float


@dataclass
class ClusterAndDispatchCall(MapCall):
    """Arguments of `cluster_and_dispatch`."""

    prototypes: Tensor
    u: Tensor
    scale: Tensor | float
    attend: Callable[[Tensor], Tensor]
    stride: int

    @property
    def grad(self) -> bool:
        """Whether gradients are enabled: parameters of ``attend`` may require a gradient."""
        return torch.is_grad_enabled()

    @property
    def autocast(self) -> bool:
        """False: each path converts the tensors to the dtype of autocast."""
        return False
