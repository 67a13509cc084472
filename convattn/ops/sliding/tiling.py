"""The tiling of the axes of a map for `strips.py`, whose symbols are used here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from convattn.ops import tuned
from convattn.ops.positions import ceil_divide, reflect


@dataclass(frozen=True)
class AxisTiling:
    """The queries of one axis in tiles of equal size: n tiles in each of r phases.

    A dilated window contains every r-th pixel. The queries of a tile are r outputs apart, so that
    their windows contain the same pixels. The keys of neighbouring tiles of a phase overlap.

    Attributes:
        phases: r, or fewer on a short axis.
        tiles: n, the number of tiles of each phase.
        tile: number of queries of a tile.
        step: number of keys between the first keys of neighbouring tiles.
        keys_per_tile: number of keys in the windows of a tile.
        outputs: number of outputs of the axis.
        output_of_query: the output that each query computes; the last output for queries past the
            end.
        past: the queries past the end.
        query_of_output: the query that computes each output.
        keys: the position of each key of all tiles, phase by phase, flattened.
        core: the keys that are not mirrored, if they are in order; else None.
        seen: (queries, keys of a tile) whether the window of the query contains the key.
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
        """Whether query i computes output i, for all i."""
        return len(self.output_of_query) == self.outputs and self.phases == 1

    @property
    def borders(self) -> list[slice]:
        """The ranges of the mirrored keys, if the other keys are in order."""
        assert self.core is not None
        borders = slice(0, self.core.start), slice(self.core.stop, len(self.keys))
        return [x for x in borders if x.start < x.stop]

    @property
    def keys_of_phase(self) -> int:
        """The number of keys of all tiles of a phase."""
        return len(self.keys) // self.phases


@lru_cache(maxsize=64)
def divide(size: int, span: int, window_size: int, stride: int, dilation: int) -> AxisTiling:
    """Divide an axis into tiles of equal size, with ``span`` queries at most."""
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
    """Blocks of columns of a map, strips of rows of a block, and the mask of a strip.

    Attributes:
        rows: the tiling of the rows.
        columns: the tiling of the columns.
        mask: (R T, U) 0 if the window of the query contains the key, else -inf.
        strips: the range of the keys of each strip, among the keys of a block.
    """

    rows: AxisTiling
    columns: AxisTiling
    mask: Tensor
    strips: tuple[slice, ...]

    @property
    def blocks(self) -> int:
        """The number of blocks of all phases."""
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
    """Divide the queries of a map into blocks of columns, and each block into strips of rows."""
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
