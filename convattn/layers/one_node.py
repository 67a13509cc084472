"""Modules that read the size of their map: ``torch.fx`` keeps each of them as one node."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy


class OneNode(nn.Module):
    """A module that every ``torch.fx`` tracer keeps as one node of the graph.

    Its hooks are called when the graph runs, not during tracing.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module, or, during tracing, add the call to the graph."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, Proxy):
                return _traced_call(value.tracer, self, args, kwargs)
        return super().__call__(*args, **kwargs)


def _traced_call(
    tracer: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    def forward(
        *args: Any, **kwargs: Any
    ) -> Any:  # if the tracer does not treat the module as a leaf
        return tracer.create_proxy("call_module", tracer.path_of_module(module), args, kwargs)

    return tracer.call_module(module, forward, args, kwargs)
