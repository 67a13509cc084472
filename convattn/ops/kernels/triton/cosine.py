"""Cosine attention as operators of PyTorch that call Triton programs: both steps of GLMix.

B batch, n rows, m keys, C channels, t scale (the inverse temperature). In clustering, the rows are
slots, and keys and values are pixels. In dispatching, the rows are pixels, the keys are prototypes
and the values are slots. ^ is the unit vector, or zero if the vector has no direction.

    s_ij = a^_i . k^_j,  P_ij = exp(t s_ij - lse_i),  y_i = sum_j P_ij v_j

    delta_i = dy_i . y_i,  dl_ij = P_ij (dy_i . v_j - delta_i)
    dv_j = sum_i P_ij dy_i
    da_i = t / |a_i| (sum_j dl_ij k^_j - a^_i sum_j dl_ij s_ij)
    dk_j = t / |k_j| (sum_i dl_ij a^_i - k^_j sum_i dl_ij s_ij)
    dt   = sum_ij dl_ij s_ij

Norms are computed while vectors are read, and no matrix (n, m) is stored. A side with few vectors
has few programs (in clustering, each slot attends to all pixels). The other side is then divided
into parts. The outputs of the parts are averaged with weights from their lse, and their gradients
are added. There are no atomic additions, so that the order of the sums is fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convattn.ops.kernels.triton import cosine_programs as programs
from convattn.ops.kernels.triton.launch import accumulator, on_device_of, power_of_2, wide
from convattn.ops.positions import ceil_divide

PROGRAMS = 256  # number of programs that occupies a large GPU
LEAST = 4  # minimum blocks of a part: fewer blocks take less time than the start of a program


@torch.library.custom_op("convattn_kernels::attend_cosine", mutates_args=())
def attend_cosine(a: Tensor, k: Tensor, v: Tensor | None, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Average the values with weights from the softmax of the scaled cosines.

    Args:
        a: rows (B, n, C) with any strides.
        k: keys (B, m, C).
        v: values (B, m, C); None for the keys.
        scale: t (1,).

    Returns:
        (B, n, C) and lse (B, n), in base 2 and float32 or float64.
    """
    plan = _plan(a, a.shape[1], k.shape[1])
    values = k if v is None else v
    out = plan.allocate(a)
    lse = a.new_empty(plan.parts, *a.shape[:2], dtype=wide(a.dtype))
    with on_device_of(a, programs.attend):
        programs.attend[plan.grid](
            a, k, values, scale, out, lse, *_strides(a, k, values), *out.stride(),
            a.shape[1], k.shape[1], *plan.sizes, **plan.blocks,
        )  # fmt: skip
    if plan.parts == 1:
        return out[0], lse[0]
    total = torch.logsumexp(lse * math.log(2), 0) / math.log(2)
    return _add((lse - total).exp2()[..., None] * out, a), total


@attend_cosine.register_fake
def _(a: Tensor, k: Tensor, v: Tensor | None, scale: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(a), a.new_empty(a.shape[:2], dtype=wide(a.dtype))


@torch.library.custom_op("convattn_kernels::attend_cosine_backward", mutates_args=())
def attend_cosine_backward(
    grad: Tensor, a: Tensor, k: Tensor, v: Tensor | None, scale: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of ``attend_cosine``: of a, k, v (of no elements for None) and scale."""
    values = k if v is None else v
    inputs = (a, k, values)
    numbers = (a.shape[1], k.shape[1])
    by_rows, by_keys = _plan(a, *numbers), _plan(a, *reversed(numbers))
    delta = torch.empty_like(lse)
    da, dk = by_rows.allocate(a), by_keys.allocate(k)
    dv = k.new_empty(1, 1, 1, 0) if v is None else by_keys.allocate(v)
    slope = a.new_empty(by_rows.parts, *lse.shape, dtype=lse.dtype)
    with on_device_of(a, programs.attend):
        blocks = {name: by_rows.blocks[name] for name in ("CHANNELS", "CHUNK", "BLOCK", "ACC")}
        programs.row_products[(by_rows.number * len(a),)](
            grad, out, delta, *_strides(grad, out), numbers[0], by_rows.number, len(a), **blocks
        )
        programs.backward_rows[by_rows.grid](
            *inputs, scale, grad, lse, delta, da, slope, *_strides(*inputs, grad), *da.stride(),
            *numbers, *by_rows.sizes, **by_rows.blocks,
        )  # fmt: skip
        programs.backward_keys[by_keys.grid](
            *inputs, scale, grad, lse, delta, dk, dv, *_strides(*inputs, grad),
            *dk.stride(), *dv.stride(), *numbers, *by_keys.sizes,
            **by_keys.blocks, SHARED=v is None,
        )  # fmt: skip
    da, dk = (_add(parts, x) for parts, x in ((da, a), (dk, k)))
    dv = dv[0, 0, 0] if v is None else _add(dv, v)
    return da, dk, dv, slope.sum().to(scale.dtype).reshape(scale.shape)


@attend_cosine_backward.register_fake
def _(
    grad: Tensor, a: Tensor, k: Tensor, v: Tensor | None, scale: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dv = k.new_empty(0) if v is None else torch.empty_like(v)
    return torch.empty_like(a), torch.empty_like(k), dv, torch.empty_like(scale)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    a, k, v, *rest = ctx.saved_tensors
    da, dk, dv, ds = attend_cosine_backward(grad, a, k, v, *rest)
    return da, dk, None if v is None else dv, ds


attend_cosine.register_autograd(_backward, setup_context=_save)


@dataclass(frozen=True)
class _Plan:
    """The division of rows and keys among programs.

    A program computes a block of one side, either the rows or the keys, with one part of the other
    side.

    Args:
        number: number of blocks of the one side.
        images: B.
        parts: number of parts of the other side.
        part: number of vectors of a part.
        blocks: the constants for which the program is compiled.
    """

    number: int
    images: int
    parts: int
    part: int
    blocks: dict[str, Any]

    @property
    def grid(self) -> tuple[int]:
        channels = ceil_divide(self.blocks["CHANNELS"], self.blocks["BLOCK_C"])
        return (self.number * channels * self.images * self.parts,)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.part, self.number, self.images

    def allocate(self, x: Tensor) -> Tensor:
        """Allocate a tensor like ``x`` for each part, in the dtype in which parts are added."""
        if self.parts == 1:
            return torch.empty_like(x)[None]
        return x.new_empty(self.parts, *x.shape, dtype=wide(x.dtype))


def _plan(x: Tensor, own: int, passing: int) -> _Plan:
    """Choose the blocks by the registers of a program, and the parts by the number of programs."""
    channels, bytes_of_one = x.shape[2], x.element_size()
    block = 64 if bytes_of_one == 2 else 32
    block_c = min(power_of_2(channels, 16), 256 // bytes_of_one)
    chunk = next((c for c in (64, 32) if c <= block and channels % c == 0), 32)
    number = ceil_divide(own, block)
    programs_of_part = number * ceil_divide(channels, block_c) * len(x)
    target_parts = PROGRAMS // max(programs_of_part, 1)  # an empty batch has no program
    parts = max(min(target_parts, passing // (LEAST * block)), 1)
    part = ceil_divide(ceil_divide(passing, parts), block) * block
    blocks = {
        "CHANNELS": channels,
        "BLOCK_C": block_c,
        "CHUNK": chunk,
        "BLOCK": block,
        "PASSING": block,
        "ACC": accumulator(x.dtype),
        "num_warps": 8 if block_c >= 128 else 4,
        "num_stages": 2,
    }
    return _Plan(number, len(x), ceil_divide(passing, part), part, blocks)


def _add(parts: Tensor, x: Tensor) -> Tensor:
    """Add the parts; the sum has the dtype and the layout of ``x``."""
    return parts[0] if len(parts) == 1 else torch.empty_like(x).copy_(parts.sum(0))


def _strides(*tensors: Tensor) -> list[int]:
    return [n for x in tensors for n in x.stride()]
