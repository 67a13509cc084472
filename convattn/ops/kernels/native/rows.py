"""Layer norm, softmax and GLMix's similarities by `rows.c`, where nobody wants a gradient.

They are called by their addresses, not as operators of PyTorch: `takes` says where nobody minds.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from convattn.ops._backend import Case
from convattn.ops.kernels.native.library import available, library

DTYPES = (torch.float32, torch.bfloat16)


def takes(case: Case) -> bool:
    """Whether such tensors can be computed here: on a CPU, and nobody differentiates or watches."""
    return (
        case.device == "cpu"
        and case.dtype in DTYPES
        and not case.grad
        and not case.exporting
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0  # whoever watches operators knows aten's
        and not case.transformed
        and not torch.is_autocast_enabled("cpu")
        and available()
    )


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the rows (..., C) normed; x is contiguous, and all are of one type."""
    y = torch.empty_like(x)
    width = x.shape[-1]
    library().rows_layer_norm(
        *_addresses(x, weight, bias, y),
        *_integers(x.numel() // width, width),
        ctypes.c_float(eps),
        *_integers(x.dtype == torch.bfloat16, torch.get_num_threads()),
    )
    return y


def softmax_(x: Tensor) -> Tensor:
    """Take the softmax of the rows (..., n) of a contiguous tensor, in place."""
    width = x.shape[-1]
    library().rows_softmax(
        *_addresses(x),
        *_integers(x.numel() // width, width, x.dtype == torch.bfloat16, torch.get_num_threads()),
    )
    return x


def directions(x: Tensor, least: float, factor: float) -> Tensor:
    """Return ``factor x / |x|`` for the rows (..., C), 0 for those no longer than ``least``."""
    x = x.contiguous()
    y, width = torch.empty_like(x), x.shape[-1]
    library().rows_directions(
        *_addresses(x, y),
        *_integers(x.numel() // width, width),
        ctypes.c_float(least),
        ctypes.c_float(factor),
        *_integers(x.dtype == torch.bfloat16, torch.get_num_threads()),
    )
    return y


def similarities_(products: Tensor, u: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Make products of pixels and slots ``exp(products / |u|)``, in place; return its sums.

    Args:
        products: (B, P, M), contiguous.
        u: pixels (B, P, C), whose channels and pixels lie one after another.
        least: a length up to which a pixel has no direction: 0 in place of 1 / |u|.

    Returns:
        1 / sums over slots (B, P), and sums over pixels (B, M), both float32.
    """
    images, pixels, slots = products.shape
    shares, totals = torch.empty(images, pixels), torch.empty(images, slots)
    room = torch.empty(images, library().rows_room(*_integers(pixels, slots)))
    library().rows_similarities(
        *_addresses(products, u, shares, totals, room),
        *_integers(images, pixels, slots, u.shape[2], u.stride(0)),
        ctypes.c_float(least),
        *_integers(u.dtype == torch.bfloat16, torch.get_num_threads()),
    )
    return shares, totals


def scale_(x: Tensor, by: Tensor) -> Tensor:
    """Multiply the rows (..., n) of a contiguous tensor by float32 numbers (...), in place."""
    width = x.shape[-1]
    library().rows_scale(
        *_addresses(x, by),
        *_integers(x.numel() // width, width, x.dtype == torch.bfloat16, torch.get_num_threads()),
    )
    return x


def _addresses(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


def _integers(*numbers: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(n) for n in numbers]
