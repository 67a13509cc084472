# mypy: ignore-errors
"""The Triton programs of cosine attention; `cosine.py` launches them and has the equations.

A program computes a block of rows or keys, and a block of output channels. It iterates over the
other side, or a part of it, in blocks. Products over all channels are summed chunk by chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from convattn.ops.kernels.triton.common_programs import LOG2_E, LOWEST, dot

SIZES = ["rows", "keys", "part", "blocks", "images"]
MIN_NORM = tl.constexpr(1e-6)  # as in ops/reference/glmix.py: a shorter vector has no direction


@triton.jit
def _load(start, index, channel, s_n, s_c, number, CHANNELS: tl.constexpr):
    """Load (vectors, channels); zeros for vectors and channels past the end."""
    at = index.to(tl.int64)[:, None] * s_n + channel.to(tl.int64)[None, :] * s_c
    mask = (index < number)[:, None] & (channel < CHANNELS)[None, :]
    return tl.load(start + at, mask=mask, other=0.0)


@triton.jit
def _store(start, value, index, channel, s_n, s_c, number, CHANNELS: tl.constexpr):
    at = index.to(tl.int64)[:, None] * s_n + channel.to(tl.int64)[None, :] * s_c
    mask = (index < number)[:, None] & (channel < CHANNELS)[None, :]
    tl.store(start + at, value.to(start.dtype.element_ty), mask=mask)


@triton.jit
def _inverse(squares):
    """Return the inverse norm of vectors from their squared norms; 0 without a direction."""
    length = tl.sqrt(squares)
    return tl.where(length > MIN_NORM, 1.0 / tl.maximum(length, MIN_NORM), 0.0)


@triton.jit
def _scaling(
    x, index, s_n, s_c, number, CHANNELS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Return the inverse norms of a block of vectors."""
    squares = tl.zeros([BLOCK], dtype=ACC)
    for chunk in range(0, CHANNELS, CHUNK):
        wide = _load(x, index, chunk + tl.arange(0, CHUNK), s_n, s_c, number, CHANNELS).to(ACC)
        squares += tl.sum(wide * wide, 1)
    return _inverse(squares)


@triton.jit
def _products(
    x, y, i, j, x_n, x_c, y_n, y_c, x_number, y_number,
    CHANNELS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, PASSING: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Return all products of two blocks of vectors, and the inverse norms of the second block."""
    total = tl.zeros([BLOCK, PASSING], dtype=ACC)
    squares = tl.zeros([PASSING], dtype=ACC)
    for chunk in range(0, CHANNELS, CHUNK):
        c = chunk + tl.arange(0, CHUNK)
        left = _load(x, i, c, x_n, x_c, x_number, CHANNELS)
        right = _load(y, j, c, y_n, y_c, y_number, CHANNELS)
        total += dot(left, tl.trans(right), ACC)
        squares += tl.sum(right.to(ACC) * right.to(ACC), 1)
    return total, _inverse(squares)


@triton.jit
def _place(blocks, images, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return block, first channel, image (64 bits) and part; the block varies fastest."""
    C_BLOCKS: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    pid = tl.program_id(0)
    rest = pid // blocks
    image = (rest // C_BLOCKS) % images
    part = rest // C_BLOCKS // images
    return pid % blocks, (rest % C_BLOCKS) * BLOCK_C, image.to(tl.int64), part.to(tl.int64)


@triton.jit(do_not_specialize=SIZES)
def attend(
    a, k, v, scale, out, lse,
    a_b, a_n, a_c, k_b, k_n, k_c, v_b, v_n, v_c, o_p, o_b, o_n, o_c,
    rows, keys, part, blocks, images,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    PASSING: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute the outputs and the lse of a block of rows for one part of the keys."""
    block, first, image, which = _place(blocks, images, CHANNELS, BLOCK_C)
    i = block * BLOCK + tl.arange(0, BLOCK)
    c = first + tl.arange(0, BLOCK_C)
    a += image * a_b
    k += image * k_b
    v += image * v_b
    out += which * o_p + image * o_b
    factor = _scaling(a, i, a_n, a_c, rows, CHANNELS, CHUNK, BLOCK, ACC)
    factor *= tl.load(scale).to(ACC) * LOG2_E
    total = tl.zeros([BLOCK, BLOCK_C], dtype=ACC)
    top = tl.full([BLOCK], LOWEST, dtype=ACC)
    norm = tl.zeros([BLOCK], dtype=ACC)
    for start in range(which * part, tl.minimum((which + 1) * part, keys), PASSING):
        j = start + tl.arange(0, PASSING)
        product, inverse = _products(
            a, k, i, j, a_n, a_c, k_n, k_c, rows, keys, CHANNELS, CHUNK, BLOCK, PASSING, ACC
        )
        logit = product * factor[:, None] * inverse[None, :]
        logit = tl.where((j < keys)[None, :], logit, float("-inf"))
        higher = tl.maximum(top, tl.max(logit, 1))
        weight = tl.exp2(logit - higher[:, None])
        shrink = tl.exp2(top - higher)
        norm = norm * shrink + tl.sum(weight, 1)
        value = _load(v, j, c, v_n, v_c, keys, CHANNELS)
        total = total * shrink[:, None] + dot(weight.to(value.dtype), value, ACC)
        top = higher
    _store(out, total / norm[:, None], i, c, o_n, o_c, rows, CHANNELS)
    if first == 0:
        level = top + tl.log2(norm)
        tl.store(lse + (which * images + image) * rows + i, level, mask=i < rows)


@triton.jit(do_not_specialize=["rows", "blocks", "images"])
def row_products(
    x, y, out, x_b, x_n, x_c, y_b, y_n, y_c, rows, blocks, images,
    CHANNELS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute delta, the product of each vector of x with the vector of y at the same place."""
    block, _, image, _ = _place(blocks, images, CHANNELS, CHANNELS)
    i = block * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=ACC)
    for chunk in range(0, CHANNELS, CHUNK):
        c = chunk + tl.arange(0, CHUNK)
        left = _load(x + image * x_b, i, c, x_n, x_c, rows, CHANNELS).to(ACC)
        total += tl.sum(left * _load(y + image * y_b, i, c, y_n, y_c, rows, CHANNELS).to(ACC), 1)
    tl.store(out + image * rows + i, total, mask=i < rows)


@triton.jit(do_not_specialize=SIZES)
def backward_rows(
    a, k, v, scale, grad, lse, delta, da, slope,
    a_b, a_n, a_c, k_b, k_n, k_c, v_b, v_n, v_c, g_b, g_n, g_c, da_p, da_b, da_n, da_c,
    rows, keys, part, blocks, images,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    PASSING: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute the terms of one part in the gradients of the rows and of the scale."""
    block, first, image, which = _place(blocks, images, CHANNELS, BLOCK_C)
    i = block * BLOCK + tl.arange(0, BLOCK)
    c = first + tl.arange(0, BLOCK_C)
    a += image * a_b
    k += image * k_b
    v += image * v_b
    grad += image * g_b
    da += which * da_p + image * da_b
    temperature = tl.load(scale).to(ACC)
    own = _scaling(a, i, a_n, a_c, rows, CHANNELS, CHUNK, BLOCK, ACC)
    level = tl.load(lse + image * rows + i, mask=i < rows, other=0.0)
    mean = tl.load(delta + image * rows + i, mask=i < rows, other=0.0)
    total = tl.zeros([BLOCK, BLOCK_C], dtype=ACC)
    along = tl.zeros([BLOCK], dtype=ACC)
    for start in range(which * part, tl.minimum((which + 1) * part, keys), PASSING):
        j = start + tl.arange(0, PASSING)
        product, inverse = _products(
            a, k, i, j, a_n, a_c, k_n, k_c, rows, keys, CHANNELS, CHUNK, BLOCK, PASSING, ACC
        )
        cosine = product * own[:, None] * inverse[None, :]
        logit = tl.where((j < keys)[None, :], cosine * (temperature * LOG2_E), float("-inf"))
        fall, _ = _products(
            grad, v, i, j, g_n, g_c, v_n, v_c, rows, keys, CHANNELS, CHUNK, BLOCK, PASSING, ACC
        )
        fall = tl.exp2(logit - level[:, None]) * (fall - mean[:, None])
        along += tl.sum(fall * cosine, 1)
        key = _load(k, j, c, k_n, k_c, keys, CHANNELS)
        unit = (key.to(ACC) * inverse[:, None]).to(key.dtype)
        total += dot(fall.to(key.dtype), unit, ACC)
    unit = _load(a, i, c, a_n, a_c, rows, CHANNELS).to(ACC) * own[:, None]
    total = (total - unit * along[:, None]) * (temperature * own)[:, None]
    _store(da, total, i, c, da_n, da_c, rows, CHANNELS)
    if first == 0:
        tl.store(slope + (which * images + image) * rows + i, along, mask=i < rows)


@triton.jit(do_not_specialize=SIZES)
def backward_keys(
    a, k, v, scale, grad, lse, delta, dk, dv,
    a_b, a_n, a_c, k_b, k_n, k_c, v_b, v_n, v_c, g_b, g_n, g_c,
    dk_p, dk_b, dk_n, dk_c, dv_p, dv_b, dv_n, dv_c,
    rows, keys, part, blocks, images,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    PASSING: tl.constexpr, ACC: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Compute the terms of one part in grad_k and grad_v; their sum if k and v are one tensor."""
    block, first, image, which = _place(blocks, images, CHANNELS, BLOCK_C)
    j = block * BLOCK + tl.arange(0, BLOCK)
    c = first + tl.arange(0, BLOCK_C)
    a += image * a_b
    k += image * k_b
    v += image * v_b
    grad += image * g_b
    temperature = tl.load(scale).to(ACC)
    own = _scaling(k, j, k_n, k_c, keys, CHANNELS, CHUNK, BLOCK, ACC)
    key_total = tl.zeros([BLOCK, BLOCK_C], dtype=ACC)
    value_total = tl.zeros([BLOCK, BLOCK_C], dtype=ACC)
    along = tl.zeros([BLOCK], dtype=ACC)
    for start in range(which * part, tl.minimum((which + 1) * part, rows), PASSING):
        i = start + tl.arange(0, PASSING)
        level = tl.load(lse + image * rows + i, mask=i < rows, other=0.0)
        mean = tl.load(delta + image * rows + i, mask=i < rows, other=0.0)
        product, inverse = _products(
            k, a, j, i, k_n, k_c, a_n, a_c, keys, rows, CHANNELS, CHUNK, BLOCK, PASSING, ACC
        )
        cosine = product * own[:, None] * inverse[None, :]
        logit = tl.where((i < rows)[None, :], cosine * (temperature * LOG2_E), float("-inf"))
        weight = tl.exp2(logit - level[None, :])
        fall, _ = _products(
            v, grad, j, i, v_n, v_c, g_n, g_c, keys, rows, CHANNELS, CHUNK, BLOCK, PASSING, ACC
        )
        fall = weight * (fall - mean[None, :])
        along += tl.sum(fall * cosine, 1)
        change = _load(grad, i, c, g_n, g_c, rows, CHANNELS)
        value_total += dot(weight.to(change.dtype), change, ACC)
        row = _load(a, i, c, a_n, a_c, rows, CHANNELS)
        unit = (row.to(ACC) * inverse[:, None]).to(row.dtype)
        key_total += dot(fall.to(row.dtype), unit, ACC)
    unit = _load(k, j, c, k_n, k_c, keys, CHANNELS).to(ACC) * own[:, None]
    key_total = (key_total - unit * along[:, None]) * (temperature * own)[:, None]
    if SHARED:
        key_total += value_total
    else:
        dv += which * dv_p + image * dv_b
        _store(dv, value_total, j, c, dv_n, dv_c, keys, CHANNELS)
    _store(dk + which * dk_p + image * dk_b, key_total, j, c, dk_n, dk_c, keys, CHANNELS)
