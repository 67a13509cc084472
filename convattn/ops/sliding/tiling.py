"""Where the tiles of `strips.py` lie on the axes of a map; the same letters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from convattn.ops import tuned
from convattn.ops.positions import ceil_divide, reflect


@dataclass(frozen=True)
class AxisTiling:
    """The queries of one axis in tiles of one size: n in each of r phases.

    A dilated window shows every r-th pixel: queries of a tile lie r outputs apart, so that their
    windows show the same pixels. The keys of a phase overlap from tile to tile.

    Attributes:
        phases: r, or fewer on a short axis.
        tiles: n, of each phase.
        tile: queries of a tile.
        step: keys from the first of a tile to the first of the next.
        keys_per_tile: keys that the windows of a tile show.
        outputs: outputs of the axis.
        output_of_query: the output that each query computes; the last one for queries past the end.
        past: which queries lie past the end.
        query_of_output: the query that computes each output.
        keys: the position of each key of all tiles, phase by phase, flattened.
        core: the keys that are not mirrored, which lie in order; None where they do not.
        seen: (queries, keys of a tile) whether the window of the query shows the key.
    """

    phases: int
    tiles: int
    tile: int
    step: int
    keys_per_tile: int
    outputs: int
    output_of_query: Tensor
    past: Tensor
    query_of_output: Tensor
    keys: Tensor
    core: slice | None
    seen: Tensor

    @property
    def in_order(self) -> bool:
        """Whether query i computes output i, for all of them."""
        return len(self.output_of_query) == self.outputs and self.phases == 1

    @property
    def borders(self) -> list[slice]:
        """Where the mirrored keys lie, if the others lie in order."""
        assert self.core is not None
        borders = slice(0, self.core.start), slice(self.core.stop, len(self.keys))
        return [x for x in borders if x.start < x.stop]

    @property
    def keys_of_phase(self) -> int:
        """How many keys the tiles of a phase have together."""
        return len(self.keys) // self.phases


@lru_cache(maxsize=64)
def divide(size: int, span: int, window_size: int, stride: int, dilation: int) -> AxisTiling:
    """Divide an axis into even tiles of ``span`` queries at most."""
    cpu = torch.device("cpu")
    outputs = ceil_divide(size, stride)
    phases = min(dilation, outputs)
    each = ceil_divide(outputs, phases)
    tiles = ceil_divide(each, span)
    tile = ceil_divide(each, tiles)
    phase = torch.arange(phases, device=cpu)[:, None]
    output_of_query = (phase + phases * torch.arange(tiles * tile, device=cpu)).flatten()
    query_of_output = torch.empty(outputs, dtype=torch.int64, device=cpu)
    inside = output_of_query < outputs
    query_of_output[output_of_query[inside]] = inside.nonzero().flatten()
    taps = torch.arange(stride * (tiles * tile - 1) + window_size, device=cpu) - window_size // 2
    keys_per_tile = stride * (tile - 1) + window_size
    queries = torch.arange(tile, device=cpu)
    offset = torch.arange(keys_per_tile, device=cpu) - stride * queries[:, None]
    core = slice(window_size // 2, min(window_size // 2 + size, len(taps)))
    return AxisTiling(
        phases=phases,
        tiles=tiles,
        tile=tile,
        step=stride * tile,
        keys_per_tile=keys_per_tile,
        outputs=outputs,
        output_of_query=output_of_query.clamp(max=outputs - 1),
        past=(~inside).nonzero().flatten(),
        query_of_output=query_of_output,
        keys=reflect(stride * phase + dilation * taps, size).flatten(),
        core=core if dilation == 1 else None,
        seen=(offset >= 0) & (offset < window_size),
    )


@dataclass(frozen=True)
class Tiling:
    """Blocks of columns of a map, strips of their rows, and what the queries of a strip see.

    Attributes:
        rows: the tiling of the rows.
        columns: the tiling of the columns.
        mask: (R T, U) 0 where the window of the query shows the key, else -inf.
        strips: the keys of each strip, among those of a block.
    """

    rows: AxisTiling
    columns: AxisTiling
    mask: Tensor
    strips: tuple[slice, ...]

    @property
    def blocks(self) -> int:
        """Return n of all phases."""
        return self.columns.phases * self.columns.tiles


def tile_map(
    height: int,
    width: int,
    window_size: int,
    stride: int,
    dilation: int,
    *,
    backward: bool = False,
) -> Tiling:
    """Divide the queries of a map into blocks of columns, and those into strips of rows."""
    spans = tuned.STRIP_SPANS_BACKWARD if backward else tuned.STRIP_SPANS
    return _tile_map(height, width, window_size, stride, dilation, spans[stride > 1])


@lru_cache(maxsize=32)
def _tile_map(
    height: int, width: int, window_size: int, stride: int, dilation: int, span: tuple[int, int]
) -> Tiling:
    rows, columns = (
        divide(size, most, window_size, stride, dilation)
        for size, most in zip((height, width), span, strict=True)
    )
    seen = (rows.seen[:, None, :, None] & columns.seen[None, :, None, :]).flatten(2).flatten(0, 1)
    strips = []
    for phase in range(rows.phases):
        for i in range(rows.tiles):
            key = (phase * rows.keys_of_phase + i * rows.step) * columns.keys_per_tile
            strips.append(slice(key, key + seen.shape[1]))
    mask = torch.zeros(seen.shape, device="cpu").masked_fill(~seen, float("-inf"))
    return Tiling(rows, columns, mask, tuple(strips))
