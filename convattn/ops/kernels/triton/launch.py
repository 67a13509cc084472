"""Functions that every launch of a Triton program needs."""

from __future__ import annotations

import contextlib

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

# Sums of float64 are float64, also in Triton's interpreter.
ACCUMULATORS = {torch.float64: triton.language.float64}


def accumulator(dtype: torch.dtype) -> triton.language.dtype:
    """Return the type in which products of ``dtype`` are summed: float32 or float64."""
    return ACCUMULATORS.get(dtype, triton.language.float32)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums as a dtype of PyTorch: float32 or float64."""
    return torch.promote_types(dtype, torch.float32)


def on_device_of(x: Tensor, program: object) -> contextlib.AbstractContextManager[object]:
    """Return a context in which programs are launched on the device of a tensor.

    Raises:
        RuntimeError: Triton does not support the device of the tensor.
    """
    if x.is_cuda:
        return torch.cuda.device(x.device)
    if isinstance(program, triton.runtime.JITFunction) and x.device.type == "cpu":
        raise RuntimeError(
            "backend 'triton' needs tensors on a GPU, got cpu; TRITON_INTERPRET=1, set before "
            "Python starts, computes the same there, slowly"
        )
    return contextlib.nullcontext()


def power_of_2(n: int, least: int = 1) -> int:
    """Return the smallest power of 2 that is neither below ``n`` nor below ``least``."""
    return max(least, 1 << (n - 1).bit_length())
