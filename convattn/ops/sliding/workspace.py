"""The workspace of `strips.py`, and the copies between maps and blocks.

The symbols are those of `strips.py`, and P is the number of rows of keys in a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from convattn.ops import tuned
from convattn.ops.positions import ceil_divide
from convattn.ops.sliding.tiling import AxisTiling, Tiling


class Workspace:
    """Copies a few images at a time to blocks (b N n, rows and columns of a block, d), and back.

    The next images reuse the memory of all intermediate results.
    """

    def __init__(self, tiling: Tiling, num_heads: int, channels: int, dtype: torch.dtype) -> None:
        self.tiling = tiling
        self.num_heads = num_heads
        self.head_dim = channels // num_heads
        self.dtype = torch.promote_types(dtype, torch.float32)
        self.mask = tiling.mask.to(self.dtype)
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._origin: Tensor | None = None

    def chunks(self, batch: int, maps: int = 1) -> Iterator[slice]:
        """Divide a batch into chunks whose logits fit in the caches.

        A chunk has at least one image, and at most a quarter of the batch.

        Args:
            batch: number of images.
            maps: number of maps of logits of each image.
        """
        limit = tuned.STRIP_LOGITS * torch.get_num_threads() // maps
        fits = limit // (self.num_heads * self.tiling.blocks * self.mask.nbytes)
        size = max(1, min(fits, batch // 4))  # a large batch of small maps would need much memory
        return (slice(i, min(i + size, batch)) for i in range(0, batch, size))

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """Return the buffer ``name`` in a shape; a buffer that is too small is replaced."""
        dtype, size = self.dtype if dtype is None else dtype, math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name, dtype] = torch.empty(size, dtype=dtype, device="cpu")
        return buffer[:size].view(shape)

    def query_shape(self, images: int) -> tuple[int, int, int, int]:
        """Return the shape of the query tiles of a few images: (strips, b N n, R T, d)."""
        blocks = images * self.num_heads * self.tiling.blocks
        return len(self.tiling.strips), blocks, self.mask.shape[0], self.head_dim

    def key_shape(self, images: int) -> tuple[int, int, int]:
        """Return the shape of the key-value tiles of a few images: (b N n, P columns, d)."""
        blocks = images * self.num_heads * self.tiling.blocks
        return blocks, len(self.tiling.rows.keys) * self.tiling.columns.keys_per_tile, self.head_dim

    def cut_queries(self, x: Tensor, tiles: Tensor) -> None:
        """Copy a map to query tiles; queries past the end of the map are 0.

        Args:
            x: a map of the size of the outputs (b, C, H/s, W/s).
            tiles: (strips, b N n, R T, d).
        """
        x = x.permute(0, 2, 3, 1)
        for dim, axis in enumerate((self.tiling.rows, self.tiling.columns), start=1):
            if not axis.in_order:
                x = self._select(f"queries {dim}", x, dim, axis.output_of_query)
                x.index_fill_(dim, axis.past, 0)
        self._untiled(tiles).copy_(self._tiles(x))

    def paste_outputs(self, tiles: Tensor, out: Tensor) -> None:
        """Copy query tiles to a map of the size of the outputs (b, H/s, W/s, C)."""
        rows, columns = self.tiling.rows, self.tiling.columns
        tiles = self._untiled(tiles)
        if rows.in_order and columns.in_order:
            self._tiles(out).copy_(tiles)
            return
        x = self.buffer("outputs", tiles.shape).copy_(tiles)
        x = x.flatten(5, 6).flatten(3, 4).flatten(1, 2)
        out.copy_(x.index_select(1, rows.query_of_output).index_select(2, columns.query_of_output))

    def _untiled(self, tiles: Tensor) -> Tensor:
        """View (strips, b N n, R T, d) as (b, strips, R, n, T, N, d)."""
        tiles = tiles.unflatten(2, (self.tiling.rows.tile, -1))
        tiles = tiles.unflatten(1, (-1, self.num_heads, self.tiling.blocks))
        return tiles.permute(1, 0, 4, 3, 5, 2, 6)

    def _tiles(self, x: Tensor) -> Tensor:
        """View (b, rows, columns, C) as (b, strips, R, n, T, N, d)."""
        x = x.unflatten(3, (self.num_heads, -1)).unflatten(2, (-1, self.tiling.columns.tile))
        return x.unflatten(1, (-1, self.tiling.rows.tile))

    def origin(self, position: Tensor | None, images: slice) -> Tensor | None:
        """Return the positions of a few images in blocks, which `cut_keys` subtracts from keys."""
        if position is None or self._origin is not None:
            return self._origin
        shared = len(position) == 1
        origin = self._spread("origin", position if shared else position[images], num_heads=1)
        if shared:  # a position that all images share is padded once
            self._origin = origin
        return origin

    def cut_keys(self, x: Tensor, blocks: Tensor, origin: Tensor | None = None) -> None:
        """Copy the keys or values of all blocks from a map (b, C, H, W) to (b N n, P columns, d).

        ``origin`` is subtracted from the keys.
        """
        x = self._spread("padded", x, self.num_heads)
        blocks = blocks.view(x.shape)
        if origin is None:
            blocks.copy_(x)
        else:
            torch.sub(x, origin, out=blocks)

    def _spread(self, name: str, x: Tensor, num_heads: int) -> Tensor:
        """Pad a map and view its blocks: (b, N, phases, n of a phase, P, columns, d)."""
        columns = self.tiling.columns
        x = self._pad(name, x.permute(0, 2, 3, 1)).unflatten(3, (num_heads, -1))
        x = x.unflatten(2, (columns.phases, -1)).unfold(3, columns.keys_per_tile, columns.step)
        return x.permute(0, 4, 2, 3, 1, 6, 5)

    def _pad(self, name: str, x: Tensor) -> Tensor:
        """Copy a map (b, H, W, C) to the positions of the keys; the map is mirrored."""
        rows, columns = self.tiling.rows, self.tiling.columns
        shape = (len(x), len(rows.keys), len(columns.keys), x.shape[3])
        padded = self.buffer(name, shape)
        if rows.core is None or columns.core is None:
            x = self._select("rows", x.contiguous(), 1, rows.keys)
            return padded.copy_(self._select("columns", x, 2, columns.keys))
        # Mirror the copy: its channels are contiguous, whatever the layout of the map.
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
        """Sum the key tiles of all blocks at each pixel: (b, H, W, C)."""
        rows, columns = self.tiling.rows, self.tiling.columns
        tiles, step, width = columns.tiles, columns.step, columns.keys_per_tile
        x = blocks.unflatten(1, (-1, width))
        x = x.unflatten(0, (-1, self.num_heads, columns.phases, tiles))
        x = x.permute(0, 4, 2, 3, 5, 1, 6)  # rows, phases, tiles, columns of a tile, heads
        reach = ceil_divide(width, step)  # steps that a tile covers, rounded up
        sums = self.buffer("sums", (*x.shape[:3], tiles - 1 + reach, step, *x.shape[5:]))
        sums[:, :, :, tiles:] = 0
        if width < step:
            sums.zero_()
        sums[:, :, :, :tiles, :width] = x[:, :, :, :, :step]
        for i in range(1, reach):
            piece = x[:, :, :, :, i * step : (i + 1) * step]
            sums[:, :, :, i : i + tiles, : piece.shape[4]] += piece
        sums = sums.flatten(5, 6).flatten(3, 4)[:, :, :, : columns.keys_of_phase].flatten(2, 3)
        inside = _fold(_fold(sums, 1, rows, out.shape[1]), 2, columns, out.shape[2])
        if inside.shape != out.shape:  # with a stride, no window may contain the last pixels
            out.zero_()
        out[:, : inside.shape[1], : inside.shape[2]] = inside

    def _select(self, name: str, x: Tensor, dim: int, places: Tensor) -> Tensor:
        shape = [*x.shape[:dim], len(places), *x.shape[dim + 1 :]]
        return torch.index_select(x, dim, places, out=self.buffer(name, shape, x.dtype))


def _fold(x: Tensor, dim: int, axis: AxisTiling, size: int) -> Tensor:
    """Sum the copies of each position of an axis, in place if the copies are in order."""
    if axis.core is None:
        shape = [*x.shape[:dim], size, *x.shape[dim + 1 :]]
        return x.new_zeros(shape).index_add_(dim, axis.keys, x)
    inside = x.narrow(dim, axis.core.start, axis.core.stop - axis.core.start)
    for places in axis.borders:
        mirrored = x.narrow(dim, places.start, places.stop - places.start)
        inside.index_add_(dim, axis.keys[places], mirrored)
    return inside
