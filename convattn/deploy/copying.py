"""Copies of models whose weights are computed by hooks, which ``deepcopy`` refuses."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from convattn.layers.foldable import computed_tensors


def computed_memo(model: nn.Module) -> dict[int, Any]:
    """Return the ``memo`` of ``deepcopy`` for tensors that weight norm or pruning computes.

    The hooks compute the tensors anew at every call of the copy.
    """
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for name in computed_tensors(module)
        if isinstance(value := vars(module).get(name), Tensor)
    }
