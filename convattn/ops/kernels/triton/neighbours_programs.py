# mypy: ignore-errors
"""The Triton programs of attention to neighbours, which `neighbours.py` launches.

The equations are in `neighbours.py`. A program computes one head of one image and a tile of T x T
pixels that are DILATION apart. The windows of these pixels contain the same pixels, so that a tile
is dense for any dilation. The program iterates over the other side in blocks of BLOCK_ROWS x
BLOCK_COLUMNS pixels, with two `tl.dot` each. Triton specialises programs for integers that are 1 or
divisible by 16. This is enabled for strides and disabled for sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from convattn.ops.kernels.triton.common_programs import INTERPRETED, LOG2_E, LOWEST, dot

SIZES = ["height", "width", "rows", "columns", "blocks_y", "blocks_x", "heads"]


@triton.jit
def _reflect(place, size):
    period = tl.maximum(2 * size - 2, 1)
    inside = tl.abs(place) % period
    return tl.minimum(inside, period - inside)


@triton.jit
def _plane(heads, tiles):
    """Return tile, image and head of this program, in 64 bits for offsets in large batches."""
    tile = tl.program_id(0) % tiles
    plane = tl.program_id(0) // tiles
    return tile, (plane // heads).to(tl.int64), (plane % heads).to(tl.int64)


@triton.jit
def _first(index, blocks, TILE: tl.constexpr, DILATION: tl.constexpr):
    """Return the start of tile ``index`` of an axis; the blocks of a phase are consecutive."""
    return index // blocks + DILATION * TILE * (index % blocks)


@triton.jit
def _load(start, y, x, channel, s_c, s_y, s_x, mask, CHANNELS: tl.constexpr):
    """Load (pixels, channels) from a map with any strides."""
    at = y.to(tl.int64) * s_y + x.to(tl.int64) * s_x
    mask = mask[:, None] & (channel < CHANNELS)[None, :]
    return tl.load(start + at[:, None] + channel.to(tl.int64)[None, :] * s_c, mask=mask, other=0.0)


@triton.jit
def _store(start, value, y, x, channel, s_c, s_y, s_x, mask, CHANNELS: tl.constexpr):
    at = y.to(tl.int64) * s_y + x.to(tl.int64) * s_x
    mask = mask[:, None] & (channel < CHANNELS)[None, :]
    value = value.to(start.dtype.element_ty)
    tl.store(start + at[:, None] + channel.to(tl.int64)[None, :] * s_c, value, mask=mask)


@triton.jit
def _window(
    block,
    first_y,
    first_x,
    height,
    width,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    REFLECT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Return the pixels of a block of keys, whether they exist, and the mask of the queries."""
    REACH: tl.constexpr = STRIDE * (TILE - 1) + WINDOW
    ACROSS: tl.constexpr = (REACH + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    n = tl.arange(0, BLOCK_ROWS * BLOCK_COLUMNS)
    i = tl.arange(0, TILE * TILE)
    row = block // ACROSS * BLOCK_ROWS + n // BLOCK_COLUMNS
    column = block % ACROSS * BLOCK_COLUMNS + n % BLOCK_COLUMNS
    down = row[None, :] - STRIDE * (i // TILE)[:, None]
    across = column[None, :] - STRIDE * (i % TILE)[:, None]
    seen = (down >= 0) & (down < WINDOW) & (across >= 0) & (across < WINDOW)
    exists = (row < REACH) & (column < REACH)
    y = STRIDE * first_y + DILATION * (row - WINDOW // 2)
    x = STRIDE * first_x + DILATION * (column - WINDOW // 2)
    if REFLECT:
        y = _reflect(y, height)
        x = _reflect(x, width)
    else:
        exists = exists & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return y, x, exists, seen


@triton.jit(do_not_specialize=SIZES)
def attend(
    q, k, v, out, lse,
    q_b, q_c, q_y, q_x, k_b, k_c, k_y, k_x, v_b, v_c, v_y, v_x, o_b, o_c, o_y, o_x,
    height, width, rows, columns, blocks_y, blocks_x, heads, scale: tl.float64,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, SOFTMAX: tl.constexpr, ACC: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute the outputs of a tile of queries, by an online softmax over blocks of keys."""
    if not INTERPRETED:  # in the interpreter it is a Python number
        scale = scale.to(ACC)
    tile, image, head = _plane(heads, DILATION * DILATION * blocks_y * blocks_x)
    first_y = _first(tile // (DILATION * blocks_x), blocks_y, TILE, DILATION)
    first_x = _first(tile % (DILATION * blocks_x), blocks_x, TILE, DILATION)
    i = tl.arange(0, TILE * TILE)
    c = tl.arange(0, BLOCK_C)
    y = first_y + DILATION * (i // TILE)
    x = first_x + DILATION * (i % TILE)
    inside = (y < rows) & (x < columns)
    q += image * q_b + head * CHANNELS * q_c
    k += image * k_b + head * CHANNELS * k_c
    v += image * v_b + head * CHANNELS * v_c
    out += image * o_b + head * CHANNELS * o_c
    query = _load(q, y, x, c, q_c, q_y, q_x, inside, CHANNELS)
    total = tl.zeros([TILE * TILE, BLOCK_C], dtype=ACC)
    top = tl.full([TILE * TILE], LOWEST, dtype=ACC)
    norm = tl.zeros([TILE * TILE], dtype=ACC)
    for block in range(BLOCKS):
        key_y, key_x, exists, seen = _window(
            block, first_y, first_x, height, width,
            TILE, WINDOW, STRIDE, DILATION, SOFTMAX, BLOCK_ROWS, BLOCK_COLUMNS,
        )  # fmt: skip
        key = _load(k, key_y, key_x, c, k_c, k_y, k_x, exists, CHANNELS)
        value = _load(v, key_y, key_x, c, v_c, v_y, v_x, exists, CHANNELS)
        weight = dot(query, tl.trans(key), ACC) * scale
        if SOFTMAX:
            logit = tl.where(seen, weight * LOG2_E, float("-inf"))
            higher = tl.maximum(top, tl.max(logit, 1))
            weight = tl.exp2(logit - higher[:, None])
            shrink = tl.exp2(top - higher)
            norm = norm * shrink + tl.sum(weight, 1)
            total = total * shrink[:, None]
            top = higher
        else:
            weight = tl.where(seen, weight, 0.0)
        total += dot(weight.to(value.dtype), value, ACC)
    if SOFTMAX:
        norm = tl.where(inside, norm, 1.0)
        total = total / norm[:, None]
        plane = (image * heads + head) * rows * columns
        tl.store(lse + plane + y * columns + x, top + tl.log2(norm), mask=inside)
    _store(out, total, y, x, c, o_c, o_y, o_x, inside, CHANNELS)


@triton.jit(do_not_specialize=SIZES)
def backward_queries(
    q, k, v, out, grad, lse, delta, dq,
    q_b, q_c, q_y, q_x, k_b, k_c, k_y, k_x, v_b, v_c, v_y, v_x, o_b, o_c, o_y, o_x,
    g_b, g_c, g_y, g_x, d_b, d_c, d_y, d_x,
    height, width, rows, columns, blocks_y, blocks_x, heads, scale: tl.float64,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, SOFTMAX: tl.constexpr, ACC: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute grad_q of a tile, and store ``delta`` for the gradient of the keys."""
    if not INTERPRETED:  # in the interpreter it is a Python number
        scale = scale.to(ACC)
    tile, image, head = _plane(heads, DILATION * DILATION * blocks_y * blocks_x)
    first_y = _first(tile // (DILATION * blocks_x), blocks_y, TILE, DILATION)
    first_x = _first(tile % (DILATION * blocks_x), blocks_x, TILE, DILATION)
    i = tl.arange(0, TILE * TILE)
    c = tl.arange(0, BLOCK_C)
    y = first_y + DILATION * (i // TILE)
    x = first_x + DILATION * (i % TILE)
    inside = (y < rows) & (x < columns)
    q += image * q_b + head * CHANNELS * q_c
    k += image * k_b + head * CHANNELS * k_c
    v += image * v_b + head * CHANNELS * v_c
    grad += image * g_b + head * CHANNELS * g_c
    dq += image * d_b + head * CHANNELS * d_c
    query = _load(q, y, x, c, q_c, q_y, q_x, inside, CHANNELS)
    slope = _load(grad, y, x, c, g_c, g_y, g_x, inside, CHANNELS)
    if SOFTMAX:
        out += image * o_b + head * CHANNELS * o_c
        answer = _load(out, y, x, c, o_c, o_y, o_x, inside, CHANNELS)
        mean = tl.sum(slope.to(ACC) * answer.to(ACC), 1)
        at = (image * heads + head) * rows * columns + y * columns + x
        tl.store(delta + at, mean, mask=inside)
        level = tl.load(lse + at, mask=inside, other=0.0)
    total = tl.zeros([TILE * TILE, BLOCK_C], dtype=ACC)
    for block in range(BLOCKS):
        key_y, key_x, exists, seen = _window(
            block, first_y, first_x, height, width,
            TILE, WINDOW, STRIDE, DILATION, SOFTMAX, BLOCK_ROWS, BLOCK_COLUMNS,
        )  # fmt: skip
        key = _load(k, key_y, key_x, c, k_c, k_y, k_x, exists, CHANNELS)
        value = _load(v, key_y, key_x, c, v_c, v_y, v_x, exists, CHANNELS)
        fall = dot(slope, tl.trans(value), ACC)
        if SOFTMAX:
            logit = dot(query, tl.trans(key), ACC) * (scale * LOG2_E)
            weight = tl.exp2(tl.where(seen, logit - level[:, None], float("-inf")))
            fall = weight * (fall - mean[:, None])
        else:
            fall = tl.where(seen, fall, 0.0)
        total += dot((fall * scale).to(key.dtype), key, ACC)
    _store(dq, total, y, x, c, d_c, d_y, d_x, inside, CHANNELS)


@triton.jit
def _image(
    index,
    first,
    size,
    outputs,
    lift,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    REFLECT: tl.constexpr,
    SKIP: tl.constexpr,
    SKIP_BLOCK: tl.constexpr,
):
    """Return the queries whose windows contain mirror image ``index`` of a tile, along one axis.

    The padded axis is divided into pieces of ``span`` places. Image 0 of key y is y, image 1 is
    2 span - y, image -1 is -y and so on. Neighbouring pieces share an end, which belongs to one
    piece only, so that no place is counted twice. Candidates for queries are DILATION apart, from
    the first place of the image. With a stride, every SKIP-th candidate from ``offset`` is a query.
    """
    span = tl.maximum(size - 1, 1)
    turned = ((index & 1) != 0) & (size > 1)
    sign = tl.where(turned, -1, 1)
    place = tl.where(turned, (index + 1) * span, index * span) + sign * first
    low = tl.where(turned, 1, 0)
    high = tl.where(turned, size - 1, span - 1) if REFLECT else size - 1
    REACH: tl.constexpr = TILE + WINDOW - 1
    if STRIDE == 1:
        offset = 0
    else:
        b = tl.arange(0, SKIP_BLOCK)
        candidate = place + sign * DILATION * (b - WINDOW // 2) + STRIDE * lift  # not negative
        offset = tl.min(tl.where((b < SKIP) & (candidate % STRIDE == 0), b, REACH), 0)
    query = place + sign * DILATION * (offset - WINDOW // 2)
    last = (outputs - 1) * STRIDE
    ahead = tl.where(sign > 0, query, last - query)
    STEP: tl.constexpr = DILATION * SKIP
    begin = tl.maximum(STEP - 1 - ahead, 0) // STEP
    end = tl.minimum(
        (REACH - offset + SKIP - 1) // SKIP, tl.maximum(last - ahead + STEP, 0) // STEP
    )
    return query, sign * STEP, offset, begin, end, low, high


@triton.jit(do_not_specialize=[*SIZES, "first_y", "first_x", "images_y", "images_x", "lift"])
def backward_keys(
    q, k, v, grad, lse, delta, dk, dv,
    q_b, q_c, q_y, q_x, k_b, k_c, k_y, k_x, v_b, v_c, v_y, v_x, g_b, g_c, g_y, g_x,
    dk_b, dk_c, dk_y, dk_x, dv_b, dv_c, dv_y, dv_x,
    height, width, rows, columns, blocks_y, blocks_x, heads, scale: tl.float64,
    first_y, first_x, images_y, images_x, lift,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, SOFTMAX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    SKIP: tl.constexpr, SKIP_BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute grad_k and grad_v of a tile, from all queries whose windows contain its keys.

    Each key sums over its queries, without atomic additions, so that the order of the sum is fixed.
    """
    if not INTERPRETED:  # in the interpreter it is a Python number
        scale = scale.to(ACC)
    tile, image, head = _plane(heads, DILATION * DILATION * blocks_y * blocks_x)
    y_0 = _first(tile // (DILATION * blocks_x), blocks_y, TILE, DILATION)
    x_0 = _first(tile % (DILATION * blocks_x), blocks_x, TILE, DILATION)
    i = tl.arange(0, TILE * TILE)
    c = tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_ROWS * BLOCK_COLUMNS)
    y = y_0 + DILATION * (i // TILE)
    x = x_0 + DILATION * (i % TILE)
    inside = (y < height) & (x < width)
    q += image * q_b + head * CHANNELS * q_c
    k += image * k_b + head * CHANNELS * k_c
    v += image * v_b + head * CHANNELS * v_c
    grad += image * g_b + head * CHANNELS * g_c
    dk += image * dk_b + head * CHANNELS * dk_c
    dv += image * dv_b + head * CHANNELS * dv_c
    plane = (image * heads + head) * rows * columns
    key = _load(k, y, x, c, k_c, k_y, k_x, inside, CHANNELS)
    value = _load(v, y, x, c, v_c, v_y, v_x, inside, CHANNELS)
    key_total = tl.zeros([TILE * TILE, BLOCK_C], dtype=ACC)
    value_total = tl.zeros([TILE * TILE, BLOCK_C], dtype=ACC)
    for mirror in range(images_y * images_x):
        at_y, step_y, offset_y, begin_y, end_y, low_y, high_y = _image(
            first_y + mirror // images_x, y_0, height, rows, lift,
            TILE, WINDOW, STRIDE, DILATION, SOFTMAX, SKIP, SKIP_BLOCK,
        )  # fmt: skip
        at_x, step_x, offset_x, begin_x, end_x, low_x, high_x = _image(
            first_x + mirror % images_x, x_0, width, columns, lift,
            TILE, WINDOW, STRIDE, DILATION, SOFTMAX, SKIP, SKIP_BLOCK,
        )  # fmt: skip
        mine = (y >= low_y) & (y <= high_y) & (x >= low_x) & (x <= high_x)
        # Most mirror images contain no pixel of the tile, and then have no blocks.
        blocks_down = tl.maximum(end_y - begin_y + BLOCK_ROWS - 1, 0) // BLOCK_ROWS
        blocks_across = tl.maximum(end_x - begin_x + BLOCK_COLUMNS - 1, 0) // BLOCK_COLUMNS
        for block in range(blocks_down * blocks_across):
            row = begin_y + block // blocks_across * BLOCK_ROWS + n // BLOCK_COLUMNS
            column = begin_x + block % blocks_across * BLOCK_COLUMNS + n % BLOCK_COLUMNS
            exists = (row < end_y) & (column < end_x)
            down = offset_y + SKIP * row[None, :] - (i // TILE)[:, None]
            across = offset_x + SKIP * column[None, :] - (i % TILE)[:, None]
            seen = (down >= 0) & (down < WINDOW) & (across >= 0) & (across < WINDOW)
            seen = seen & mine[:, None] & exists[None, :]
            query_y = tl.where(exists, at_y + step_y * row, 0) // STRIDE
            query_x = tl.where(exists, at_x + step_x * column, 0) // STRIDE
            query = _load(q, query_y, query_x, c, q_c, q_y, q_x, exists, CHANNELS)
            slope = _load(grad, query_y, query_x, c, g_c, g_y, g_x, exists, CHANNELS)
            weight = dot(key, tl.trans(query), ACC) * scale
            fall = dot(value, tl.trans(slope), ACC)
            if SOFTMAX:
                at = plane + query_y * columns + query_x
                level = tl.load(lse + at, mask=exists, other=0.0)
                mean = tl.load(delta + at, mask=exists, other=0.0)
                logit = weight * LOG2_E - level[None, :]
                weight = tl.exp2(tl.where(seen, logit, float("-inf")))
                fall = weight * (fall - mean[None, :])
            else:
                weight = tl.where(seen, weight, 0.0)
                fall = tl.where(seen, fall, 0.0)
            value_total += dot(weight.to(slope.dtype), slope, ACC)
            key_total += dot((fall * scale).to(query.dtype), query, ACC)
    _store(dk, key_total, y, x, c, dk_c, dk_y, dk_x, inside, CHANNELS)
    _store(dv, value_total, y, x, c, dv_c, dv_y, dv_x, inside, CHANNELS)
