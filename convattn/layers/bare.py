"""Whether a layer may be replaced by what it computes."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def is_bare(module: nn.Module) -> bool:
    """Whether nobody sees, or changes, what a module computes when it is called."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_unseen(module: nn.Module) -> bool:
    """Whether a module is bare, and no hook of all modules sees its call either."""
    return is_bare(module) and not _has_any_global_hook()
