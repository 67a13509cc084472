# mypy: ignore-errors
"""Functions and constants that several Triton programs use."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)  # below any logit, and finite: LOWEST - LOWEST is 0, not NaN


@triton.jit
def dot(a, b, ACC: tl.constexpr):
    """Return the product of two matrices, summed in the type ``ACC``."""
    if INTERPRETED:  # the interpreter would multiply the bits of bfloat16 as integers
        a = a.to(ACC)
        b = b.to(ACC)
    return tl.dot(a, b, input_precision="ieee", out_dtype=ACC)
