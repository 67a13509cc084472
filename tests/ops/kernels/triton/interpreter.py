"""Runs tests in a process of their own, in which Triton interprets its programs on the CPU.

Triton chooses between compiler and interpreter when it is imported, which PyTorch does early; so
the variable is set before that, and nowhere else. Nothing heavy is imported here.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any


@cache
def interpreter() -> ProcessPoolExecutor:
    """Return the process, started at its first task."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_interpret)


def call(module: str, function: str, arguments: dict[str, Any]) -> None:
    """Call a test function of a module; that of the process it runs in."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    getattr(importlib.import_module(module), function)(**arguments)


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
