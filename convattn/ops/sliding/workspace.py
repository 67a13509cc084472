"""Blocks of a few images and the memory that `_sliding_strips.py` computes in; the same letters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from convattn.ops.positions import ceil_divide
from convattn.ops.sliding.tiling import Axis, Plan

# Bytes of the logits of a strip for each thread, backward with their gradients: what is computed
# in one go stays in the caches.
LOGITS = 1 << 18


class Desk:
    """Cuts a few images at a time into blocks (b N n, rows and columns of a block, d), and back.

    All that is computed on the way lies in memory that the next images use again.
    """

    def __init__(self, plan: Plan, num_heads: int, channels: int, dtype: torch.dtype) -> None:
        self.plan = plan
        self.num_heads = num_heads
        self.head_dim = channels // num_heads
        self.dtype = torch.promote_types(dtype, torch.float32)
        self.mask = plan.mask.to(self.dtype)
        self._spaces: dict[tuple[str, torch.dtype], Tensor] = {}
        self._origin: Tensor | None = None

    def chunks(self, batch: int, maps: int = 1) -> Iterator[slice]:
        """Divide a batch into as many images as fit, one at least, a quarter of it at most.

        Args:
            batch: images.
            maps: how many maps of logits each has.
        """
        room = LOGITS * torch.get_num_threads() // maps
        fits = room // (self.num_heads * self.plan.blocks * self.mask.nbytes)
        size = max(1, min(fits, batch // 4))  # of small maps all would fit, in much memory
        return (slice(i, min(i + size, batch)) for i in range(0, batch, size))

    def space(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """Return the memory of that name, as much of it as asked for."""
        dtype, size = self.dtype if dtype is None else dtype, math.prod(shape)
        space = self._spaces.get((name, dtype))
        if space is None or len(space) < size:
            space = self._spaces[name, dtype] = torch.empty(size, dtype=dtype, device="cpu")
        return space[:size].view(shape)

    def asked(self, images: int) -> tuple[int, int, int, int]:
        """Return the shape of the queries of a few images: (strips, b N n, R T, d)."""
        blocks = images * self.num_heads * self.plan.blocks
        return len(self.plan.strips), blocks, self.mask.shape[0], self.head_dim

    def shown(self, images: int) -> tuple[int, int, int]:
        """Return the shape of the keys of a few images: (b N n, P columns, d)."""
        blocks = images * self.num_heads * self.plan.blocks
        return blocks, len(self.plan.rows.keys) * self.plan.columns.shown, self.head_dim

    def queries(self, x: Tensor, tiles: Tensor) -> None:
        """Copy what belongs to the answers (b, C, H/s, W/s) to tiles, 0 for queries past the end.

        Args:
            x: the map.
            tiles: (strips, b N n, R T, d).
        """
        x = x.permute(0, 2, 3, 1)
        for dim, axis in enumerate((self.plan.rows, self.plan.columns), start=1):
            if not axis.plain:
                x = self._select(f"queries {dim}", x, dim, axis.queries)
                x.index_fill_(dim, axis.past, 0)
        self._untiled(tiles).copy_(self._tiles(x))

    def answer(self, tiles: Tensor, out: Tensor) -> None:
        """Write what belongs to the answers (b, H/s, W/s, C)."""
        rows, columns = self.plan.rows, self.plan.columns
        tiles = self._untiled(tiles)
        if rows.plain and columns.plain:
            self._tiles(out).copy_(tiles)
            return
        x = self.space("answered", tiles.shape).copy_(tiles)
        x = x.flatten(5, 6).flatten(3, 4).flatten(1, 2)
        out.copy_(x.index_select(1, rows.answers).index_select(2, columns.answers))

    def _untiled(self, tiles: Tensor) -> Tensor:
        """View (strips, b N n, R T, d) as (b, strips, R, n, T, N, d)."""
        tiles = tiles.unflatten(2, (self.plan.rows.tile, -1))
        tiles = tiles.unflatten(1, (-1, self.num_heads, self.plan.blocks))
        return tiles.permute(1, 0, 4, 3, 5, 2, 6)

    def _tiles(self, x: Tensor) -> Tensor:
        """View (b, rows, columns, C) as (b, strips, R, n, T, N, d)."""
        x = x.unflatten(3, (self.num_heads, -1)).unflatten(2, (-1, self.plan.columns.tile))
        return x.unflatten(1, (-1, self.plan.rows.tile))

    def origin(self, position: Tensor | None, images: slice) -> Tensor | None:
        """Return what the keys of a few images are relative to, as `keys` subtracts it."""
        if position is None or self._origin is not None:
            return self._origin
        shared = len(position) == 1
        origin = self._spread("origin", position if shared else position[images], num_heads=1)
        if shared:  # what a batch shares is padded once
            self._origin = origin
        return origin

    def keys(self, x: Tensor, blocks: Tensor, origin: Tensor | None = None) -> None:
        """Copy what each block shows of a map (b, C, H, W) to blocks (b N n, P columns, d)."""
        x = self._spread("padded", x, self.num_heads)
        blocks = blocks.view(x.shape)
        if origin is None:
            blocks.copy_(x)
        else:
            torch.sub(x, origin, out=blocks)

    def _spread(self, name: str, x: Tensor, num_heads: int) -> Tensor:
        """View what each block shows, with copies: (b, N, phases, n of one, P, columns, d)."""
        columns = self.plan.columns
        x = self._pad(name, x.permute(0, 2, 3, 1)).unflatten(3, (num_heads, -1))
        x = x.unflatten(2, (columns.phases, -1)).unfold(3, columns.shown, columns.step)
        return x.permute(0, 4, 2, 3, 1, 6, 5)

    def _pad(self, name: str, x: Tensor) -> Tensor:
        """Copy the rows and columns of keys of a map (b, H, W, C), mirrored at its borders."""
        rows, columns = self.plan.rows, self.plan.columns
        shape = (len(x), len(rows.keys), len(columns.keys), x.shape[3])
        padded = self.space(name, shape)
        if rows.core is None or columns.core is None:
            x = self._select("rows", x.contiguous(), 1, rows.keys)
            return padded.copy_(self._select("columns", x, 2, columns.keys))
        # mirrored after they are copied: then the channels of a pixel lie together in any map
        inside = padded[:, rows.core]
        height, width = (core.stop - core.start for core in (rows.core, columns.core))
        inside[:, :, columns.core] = x[:, :height, :width]
        for places in columns.borders:
            mirrored = inside.index_select(2, columns.keys[places] + columns.core.start)
            inside[:, :, places] = mirrored
        for places in rows.borders:
            padded[:, places] = padded.index_select(1, rows.keys[places] + rows.core.start)
        return padded

    def sum_copies(self, blocks: Tensor, out: Tensor) -> None:
        """Write the sum of what all blocks show of each pixel: (b, H, W, C)."""
        rows, columns = self.plan.rows, self.plan.columns
        tiles, step, shown = columns.tiles, columns.step, columns.shown
        x = blocks.unflatten(1, (-1, shown))
        x = x.unflatten(0, (-1, self.num_heads, columns.phases, tiles))
        x = x.permute(0, 4, 2, 3, 5, 1, 6)  # rows, phases, tiles, columns of a tile, heads
        reach = ceil_divide(shown, step)  # the last tile reaches past whole steps
        sums = self.space("sums", (*x.shape[:3], tiles - 1 + reach, step, *x.shape[5:]))
        sums[:, :, :, tiles:] = 0
        if shown < step:
            sums.zero_()
        sums[:, :, :, :tiles, :shown] = x[:, :, :, :, :step]
        for i in range(1, reach):
            piece = x[:, :, :, :, i * step : (i + 1) * step]
            sums[:, :, :, i : i + tiles, : piece.shape[4]] += piece
        sums = sums.flatten(5, 6).flatten(3, 4)[:, :, :, : columns.keys_of_phase].flatten(2, 3)
        inside = _fold(_fold(sums, 1, rows, out.shape[1]), 2, columns, out.shape[2])
        if inside.shape != out.shape:  # a stride passes the last pixels by
            out.zero_()
        out[:, : inside.shape[1], : inside.shape[2]] = inside

    def _select(self, name: str, x: Tensor, dim: int, places: Tensor) -> Tensor:
        shape = [*x.shape[:dim], len(places), *x.shape[dim + 1 :]]
        return torch.index_select(x, dim, places, out=self.space(name, shape, x.dtype))


def _fold(x: Tensor, dim: int, axis: Axis, size: int) -> Tensor:
    """Sum the copies of each place of an axis, in the memory of those in order if they are."""
    if axis.core is None:
        shape = [*x.shape[:dim], size, *x.shape[dim + 1 :]]
        return x.new_zeros(shape).index_add_(dim, axis.keys, x)
    inside = x.narrow(dim, axis.core.start, axis.core.stop - axis.core.start)
    for places in axis.borders:
        mirrored = x.narrow(dim, places.start, places.stop - places.start)
        inside.index_add_(dim, axis.keys[places], mirrored)
    return inside
