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
        """Whether a gradient is required of a tensor or of the scale."""
        if not torch.is_grad_enabled():
            return False
        return super().grad or (isinstance(self.scale, Tensor) and self.scale.requires_grad)

    @property
    def plain(self) -> bool:
        """Whether the tensors and the scale are PyTorch's own, and the scale has a value."""
        number = isinstance(self.scale, (int, float)) or type(self.scale) in (Tensor, Parameter)
        return number and super().plain


class MapCall(ScaledCall):
    """A call with a map ``u`` (B, C, H, W)."""

    u: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The type of the map, or that of autocast where it is on."""
        return result_type(self.u)

    @property
    def pixels(self) -> int:
        """Pixels of the map; a symbol where sizes are symbols."""
        return self.u.shape[2] * self.u.shape[3]

    @property
    def symbolic(self) -> bool:
        """Whether sizes are symbols, or a compiled program is traced, where they may be."""
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
        """Whether gradients are enabled: parameters of ``attend`` may require one."""
        return torch.is_grad_enabled()

    @property
    def autocast(self) -> bool:
        """No: each path converts the tensors to the type of autocast itself."""
        return False
