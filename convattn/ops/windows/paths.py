"""Window attention in all windows at once: partition, mask what does not belong, attend, merge.

B batch, C channels, N heads of d = C / N channels, K window, L = K^2 its pixels, n windows.

| path     | computes                                                                           |
|----------|------------------------------------------------------------------------------------|
| "native" | in C, windows read where they lie, without gradients: `convattn.ops.kernels.native` |
| "matmul" | a copy of the map by windows, products and a softmax                                |
| "sdpa"   | the same copy, ``scaled_dot_product_attention``                                     |

The heads are views of that copy, which is made once.

An axis that K does not divide is padded before the pixels that the shift rolled around its end:
those stay together in the last window, as they are in the grid of windows that the shift moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.kernels.native import heads as native
from convattn.ops.kernels.native import rows
from convattn.ops.old_dispatch import Case, Rule, choose, derivable, describe
from convattn.ops.positions import ceil_divide
from convattn.ops.processor import multiplies


def _native(case: Case) -> bool:
    return rows.takes(case) and case.window**2 <= native.MOST_TOKENS


# How the heads of windows attend that were copied from the map.
COPIED_RULES: tuple[Rule, ...] = (
    ("matmul", lambda case: case.transformed, "sdpa has no gradient of a mask there, nor a jvp"),
    ("sdpa", lambda case: case.grad or case.exporting, "keeps no logits for the gradient"),
    (
        "matmul",
        lambda case: (
            (case.device, case.dtype) == ("cpu", torch.bfloat16) and multiplies(case.dtype)
        ),
        "(96, 56), 3 heads: 18 ms against 26 for the layer, (192, 28) 10, 12; float32 51, 26",
    ),
    (
        "sdpa",
        lambda case: True,
        "float32 on a CPU as above; bfloat16 with AVX2 alone 5x to 6x; the rest not measured",
    ),
)
WINDOW_RULES: tuple[Rule, ...] = (
    (
        "native",
        _native,
        "two cores, shifted, with bias: bfloat16 (96, 56) 6.3 ms, copied 18, (384, 14) 2.7, 3.5; "
        "float32 12, 19 and 4.9, 7.0",
    ),
    *COPIED_RULES,
)


def attend_in_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    window_size: int,
    shift: tuple[int, int],
    bias: Tensor | None,
    scale: float | None,
    backend: str,
) -> Tensor:
    """Pad the maps to whole windows and attend in all of them at once.

    ``backend`` is "sdpa", or "auto" for what the rules say.
    """
    layout = _lay_out(q, window_size, shift)
    if backend == "auto" and _in_place([q, k, v], bias, window_size):
        padded = [_pad(x, layout) for x in (q, k, v)]
        return _unpad(_attend_in_place(padded, num_heads, layout, bias, scale), layout)
    tokens = (_partition(_pad(x, layout), layout).flatten(1, 2) for x in (q, k, v))
    heads = [x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in tokens]
    out = _attend(heads, q.shape[0], layout, bias, scale, backend)
    return _unpad(_merge(out, q.shape[0], layout), layout)


def attend_map_in_windows(
    x: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    *,
    num_heads: int,
    window_size: int,
    shift: tuple[int, int],
    bias: Tensor | None,
    scale: float | None,
    backend: str,
) -> Tensor:
    """Do the same from the map that one 1x1 convolution makes q, k and v of: one copy for three."""
    layout = _lay_out(x, window_size, shift)
    given = [x, weight] if offset is None else [x, weight, offset]
    if backend == "auto" and _in_place(given, bias, window_size):
        parts = F.conv2d(_pad(x, layout), weight, offset).chunk(3, 1)
        return _unpad(_attend_in_place(parts, num_heads, layout, bias, scale), layout)
    # (B n, C_in, K, K), channels last
    pixels = _partition(_pad(x, layout), layout).permute(0, 3, 1, 2)
    projected = F.conv2d(pixels, weight, offset).permute(0, 2, 3, 1).flatten(1, 2)
    heads = projected.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    out = _attend(heads, x.shape[0], layout, bias, scale, backend)
    return _unpad(_merge(out, x.shape[0], layout), layout)


@dataclass(frozen=True)
class _Layout:
    """Where the windows of a map lie.

    Attributes:
        window_size: K.
        grid: rows and columns of windows.
        gaps: of each axis, where its padding starts and ends.
        padded: the axes whose padding is put in.
        shifted: whether there are pixels that the shift rolled around.
    """

    window_size: int
    grid: tuple[int, int]
    gaps: list[tuple[int, int]]
    padded: tuple[int, ...]
    shifted: bool


def _lay_out(x: Tensor, window_size: int, shift: tuple[int, int]) -> _Layout:
    H, W = x.shape[2:]
    grid = ceil_divide(H, window_size), ceil_divide(W, window_size)
    gaps = [_gap(*axis, window_size) for axis in zip((H, W), grid, shift, strict=True)]
    return _Layout(window_size, grid, gaps, _padded(H, W, window_size), max(shift) > 0)


def _padded(height: int, width: int, window_size: int) -> tuple[int, ...]:
    """Return the axes that whole windows do not fill.

    A compiled graph is for maps that they fill, or for all the others: it is asked one question
    about sizes, and its padding may be nothing.
    """
    left_over = height % window_size, width % window_size
    if left_over[0] + left_over[1] == 0:
        return ()
    if torch.compiler.is_compiling():
        return 2, 3
    return tuple(dim for dim, rest in zip((2, 3), left_over, strict=True) if rest)


def _in_place(tensors: Sequence[Tensor], bias: Tensor | None, window_size: int) -> bool:
    """Whether the windows are read where they lie in the map."""
    case = describe(*tensors, *([] if bias is None else [bias]), window=window_size)
    alike = all(t.dtype == tensors[0].dtype for t in tensors)
    return alike and choose(WINDOW_RULES, case) == "native"


def _attend_in_place(
    maps: Sequence[Tensor],
    num_heads: int,
    layout: _Layout,
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Attend in maps of whole windows, q, k and v (B, C, H, W) each: (B, C, H, W)."""
    mask = None if bias is None else native.lanes(bias.float().mT)[None]
    if layout.padded or layout.shifted:
        pixels = layout.window_size**2
        none = maps[0].new_zeros(1, 1, pixels, native.whole(pixels), dtype=torch.float32)
        # who is apart is so both ways
        mask = _mask(layout, none if mask is None else mask, none.device)
    maps = [x.resolve_neg() for x in maps]  # a view may say that its numbers are the negative ones
    q, k, v = (x if x.stride(1) == 1 else _channels_last(x) for x in maps)
    scale = (q.shape[1] // num_heads) ** -0.5 if scale is None else scale
    return native.attend_windows(
        q, k, v, mask, num_heads=num_heads, window_size=layout.window_size, scale=scale
    )


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _attend(
    heads: Sequence[Tensor],
    images: int,
    layout: _Layout,
    bias: Tensor | None,
    scale: float | None,
    backend: str,
) -> Tensor:
    """Attend in each window and head, q, k and v (B n, N, L, d) each: (B n, N, L, d)."""
    q, k, v = heads
    mask = None if bias is None else bias.to(q.dtype)[None]
    if layout.padded or layout.shifted:
        none = q.new_zeros(1, 1, layout.window_size**2, layout.window_size**2)
        mask = _mask(layout, none if mask is None else mask, q.device)
        mask = mask.expand(images, -1, -1, -1, -1).flatten(0, 1)
    if backend == "sdpa" or choose(COPIED_RULES, describe(q, k, v)) == "sdpa":
        with derivable():
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    batch = q.shape[:2]
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    if mask is None:
        logits = torch.bmm(q * scale, k.mT)
    else:
        mask = mask.expand(*batch, -1, -1).flatten(0, 1)
        logits = torch.baddbmm(mask, q, k.mT, alpha=scale)
    # a softmax of bfloat16 rows takes more than twice as long
    wide = torch.promote_types(logits.dtype, torch.float32)
    weights = logits.softmax(-1, dtype=wide).to(v.dtype)
    return torch.bmm(weights, v).unflatten(0, batch)


def _gap(size: int, windows: int, shift: int, window_size: int) -> tuple[int, int]:
    """Return where the padding of an axis starts and ends."""
    start = max(size - shift, 0)
    return start, start + windows * window_size - size


def _pad(x: Tensor, layout: _Layout) -> Tensor:
    """Fill up to whole windows with zeros."""
    for dim in layout.padded:
        start, end = layout.gaps[dim - 2]
        shape = list(x.shape)
        shape[dim] = end - start
        after = x.narrow(dim, start, x.shape[dim] - start)
        x = torch.cat([x.narrow(dim, 0, start), x.new_zeros(shape), after], dim)
    return x


def _unpad(x: Tensor, layout: _Layout) -> Tensor:
    """Take out what ``_pad`` put in."""
    for dim in layout.padded:
        start, end = layout.gaps[dim - 2]
        after = x.narrow(dim, end, x.shape[dim] - end)
        x = torch.cat([x.narrow(dim, 0, start), after], dim)
    return x


def _partition(x: Tensor, layout: _Layout) -> Tensor:
    """Cut a map of whole windows into those, channels last: (B n, K, K, C)."""
    rows, columns = ((n, layout.window_size) for n in layout.grid)
    x = x.unflatten(3, columns).unflatten(2, rows)
    return x.permute(0, 2, 4, 3, 5, 1).contiguous().flatten(0, 2)


def _merge(out: Tensor, images: int, layout: _Layout) -> Tensor:
    """Put the windows' tokens (B n, N, L, d) back in their places: (B, C, H, W), channels last."""
    out = out.transpose(1, 2).flatten(2)
    K = layout.window_size
    out = out.reshape(images, *layout.grid, K, K, out.shape[2])
    return out.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _mask(layout: _Layout, bias: Tensor, device: torch.device) -> Tensor:
    """Return what is added to the logits of each window: (n, N or 1, L, L).

    ``bias`` is (1, N or 1, L, L); if its last dimension is longer, so is that of the mask.
    """
    rows, columns = (
        _segments(gap, windows, layout.window_size, device)
        for gap, windows in zip(layout.gaps, layout.grid, strict=True)
    )
    segments = 3 * rows[:, None, :, None] + columns[None, :, None, :]
    segments = segments.flatten(2).flatten(0, 1)
    apart = segments[:, :, None] != segments[:, None, :]
    apart = F.pad(apart, (0, bias.shape[3] - apart.shape[2]))
    return bias.masked_fill(apart[:, None], float("-inf"))


def _segments(gap: tuple[int, int], windows: int, window_size: int, device: torch.device) -> Tensor:
    """Number the pixels of an axis, window by window: 0 in place, 1 padding, 2 rolled around."""
    places = torch.arange(windows * window_size, device=device)
    segments = (places >= gap[0]).long() + (places >= gap[1]).long()
    return segments.unflatten(0, (windows, window_size))
