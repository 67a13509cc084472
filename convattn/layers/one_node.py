"""Modules that look at the size of their map, while ``torch.fx`` traces a network around them."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError

from convattn.layers.bare import is_unseen


def is_traced(x: Any) -> bool:
    """Whether ``x`` stands for a tensor that ``torch.fx`` has not seen yet."""
    return isinstance(x, Proxy)


def as_one_node(module: nn.Module, x: Any, *others: Any) -> Any:
    """Return what a call of ``module`` stands for in the graph: one node, as of a leaf module.

    Args:
        module: the module, whose ``forward`` calls this.
        x: the first input, for which `is_traced` holds.
        *others: the other inputs.

    Raises:
        TraceError: nothing is around the module, or a hook would be traced and be called again.
    """
    kind, name = type(module).__name__, x.tracer.path_of_module(module)
    if not name:
        raise TraceError(
            f"torch.fx cannot trace the inside of {kind}, which looks at the size of its map; "
            f"trace a network that holds it, where {kind} is one node"
        )
    if not is_unseen(module):
        raise TraceError(
            f"torch.fx cannot trace a call of {name!r} with its hooks; remove the hooks, or make "
            f"{kind} a leaf module: tracer_kwargs={{'leaf_modules': [{kind}]}} in torchvision, "
            "is_leaf_module() of a torch.fx.Tracer"
        )
    return x.tracer.create_proxy("call_module", name, (x, *others), {})
