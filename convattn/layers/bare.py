"""Whether a layer may be replaced by what it computes."""

from __future__ import annotations

from torch import nn


def is_bare(module: nn.Module) -> bool:
    """Whether nobody sees, or changes, what a module computes when it is called."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
