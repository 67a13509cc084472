"""Layer norm, and what GLMix does with rows: directions, similarities, factors. By `rows.c`.

None has a gradient. They are called by their addresses, not as operators of PyTorch: `takes` says
where nobody minds, of these and of those of `heads.py`.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from convattn.ops.kernels.native.library import available, library
from convattn.ops.old_dispatch import Case, unwatched

DTYPES = (torch.float32, torch.bfloat16)
MOST_WIDTH = 1 << 13  # of a row that is normed: a few lie on the stack


def takes(case: Case) -> bool:
    """Whether such tensors can be computed here: on a CPU, and nobody differentiates or watches."""
    return case.dtype in DTYPES and unwatched(case) and available()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the rows (..., C) normed; x is contiguous, and all are of one type."""
    y, width = torch.empty_like(x), x.shape[-1]
    addresses = x.data_ptr(), 0, 0, weight.data_ptr(), bias.data_ptr(), y.data_ptr()
    _call("layer_norm", "ppppppnnxnn", *addresses, x.numel() // width, width, eps, *_how(x))
    return y


def add_layer_norm(
    x: Tensor, more: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return ``x + more`` and its rows normed, which are those of the rounded sum."""
    total, y, width = torch.empty_like(x), torch.empty_like(x), x.shape[-1]
    addresses = (t.data_ptr() for t in (x, more, total, weight, bias, y))
    _call("layer_norm", "ppppppnnxnn", *addresses, x.numel() // width, width, eps, *_how(x))
    return total, y


def directions(x: Tensor, least: float, factor: float) -> Tensor:
    """Return ``factor x / |x|`` for the rows (..., C), 0 for those no longer than ``least``."""
    x = x.contiguous()
    y, width = torch.empty_like(x), x.shape[-1]
    sizes = x.numel() // width, width
    _call("directions", "ppnnxxnn", x.data_ptr(), y.data_ptr(), *sizes, least, factor, *_how(x))
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
    room = images * _call("room", "nn", pixels, slots)
    sums = [u.new_empty(n, dtype=torch.float32) for n in (images * pixels, images * slots, room)]
    addresses = (x.data_ptr() for x in (products, u, *sums))
    sizes = images, pixels, slots, u.shape[2], u.stride(0)
    _call("similarities", "pppppnnnnnxnn", *addresses, *sizes, least, *_how(u))
    shares, totals, _ = sums
    return shares.view(images, pixels), totals.view(images, slots)


def scale_(x: Tensor, by: Tensor) -> Tensor:
    """Multiply the rows (..., n) of a contiguous tensor by float32 numbers (...), in place."""
    width = x.shape[-1]
    _call("scale", "ppnnnn", x.data_ptr(), by.data_ptr(), x.numel() // width, width, *_how(x))
    return x


_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "x": ctypes.c_float}


def _call(name: str, kinds: str, *arguments: float) -> int:
    function = getattr(library(), f"rows_{name}")
    if function.argtypes is None:
        function.restype, function.argtypes = ctypes.c_int64, [_TYPES[kind] for kind in kinds]
    return int(function(*arguments))


def _how(x: Tensor) -> tuple[bool, int]:
    """Return whether everything is bfloat16, and how many threads there are."""
    return x.dtype == torch.bfloat16, torch.get_num_threads()
