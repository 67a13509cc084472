"""Check whether a call of a module may be replaced by other code with the same result."""

from __future__ import annotations

from torch import nn


def is_bare(module: nn.Module) -> bool:
    """Return whether a module has no hooks and no ``forward`` replaced on the instance."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
