"""Modules that look at the size of their map: one node each where ``torch.fx`` traces a network."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy


class OneNode(nn.Module):
    """A module that is one node of a graph of ``torch.fx``, whatever the tracer.

    Its hooks are called when the graph runs, not while it is traced.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module, or add its call to the graph that is traced."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, Proxy):
                return _traced_call(value.tracer, self, args, kwargs)
        return super().__call__(*args, **kwargs)


def _traced_call(
    tracer: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:  # where the module is no leaf to the tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(module), args, kwargs)

    return tracer.call_module(module, forward, args, kwargs)
