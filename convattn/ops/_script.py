"""Functions that TorchScript calls by name, as operators of PyTorch: `torch.ops.convattn.NAME`.

A scripted model calls the Python function, gradients included. A saved one needs
``import convattn`` before `torch.jit.load`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable)

_LIBRARY = torch.library.Library("convattn", "DEF")


def scriptable(signature: str) -> Callable[[Function], Function]:
    """Let scripted code call a function that TorchScript itself could not compile.

    Args:
        signature: its arguments and result as PyTorch's operators spell them; the name is the
            function's.
    """

    def register(function: Function) -> Function:
        name = function.__name__
        _LIBRARY.define(name + signature)
        # Composed of other operators, which autograd, devices and types take apart.
        _LIBRARY.impl(name, function, "CompositeImplicitAutograd")
        _name_in_script(function, f"convattn::{name}")
        return function

    return register


def _name_in_script(function: Callable, operator: str) -> None:
    try:
        from torch.jit._builtins import _register_builtin
    except ImportError:  # a PyTorch without TorchScript has nobody to tell
        return
    _register_builtin(function, operator)
