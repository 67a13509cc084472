"""Where the tiles of `_sliding_strips.py` lie on the axes of a map; the same letters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from convattn.ops.positions import ceil_divide, reflect

# Rows and columns of the queries of a tile, at most: fewer show each query fewer keys in vain, more
# make a better product and copy less, which counts more backward. Without a stride, and with one.
SPANS = ((2, 8), (2, 4))
SPANS_BACKWARD = ((2, 8), (2, 7))


@dataclass(frozen=True)
class Axis:
    """The queries of one axis in tiles of one size: n in each of r phases.

    A dilated window shows every r-th pixel: queries of a tile lie r answers apart, so that they
    show the same pixels. The keys of a phase overlap from tile to tile.
    """

    phases: int
    tiles: int  # n, of each phase
    tile: int  # queries of a tile
    step: int  # keys from a tile to the next
    shown: int  # keys of a tile
    answered: int  # queries there are
    queries: Tensor  # the answer that each query is for, or the last one
    past: Tensor  # which queries lie past the end
    answers: Tensor  # the query of each answer
    keys: Tensor  # (phases, those of all tiles), flattened: where each key lies
    core: slice | None  # those that lie in order, where that is so
    seen: Tensor  # (queries, keys of a tile) whether the query sees the key

    @property
    def plain(self) -> bool:
        """Whether the queries are the answers, one by one."""
        return len(self.queries) == self.answered and self.phases == 1

    @property
    def borders(self) -> list[slice]:
        """Where the keys lie that are mirrored, if the others lie in order."""
        assert self.core is not None
        borders = slice(0, self.core.start), slice(self.core.stop, len(self.keys))
        return [x for x in borders if x.start < x.stop]

    @property
    def keys_of_phase(self) -> int:
        """How many keys the tiles of a phase show."""
        return len(self.keys) // self.phases


@lru_cache(maxsize=64)
def divide(size: int, span: int, window_size: int, stride: int, dilation: int) -> Axis:
    """Divide an axis into even tiles of ``span`` queries at most."""
    cpu = torch.device("cpu")
    answered = ceil_divide(size, stride)
    phases = min(dilation, answered)
    each = ceil_divide(answered, phases)
    tiles = ceil_divide(each, span)
    tile = ceil_divide(each, tiles)
    phase = torch.arange(phases, device=cpu)[:, None]
    queries = (phase + phases * torch.arange(tiles * tile, device=cpu)).flatten()
    answers = torch.empty(answered, dtype=torch.int64, device=cpu)
    inside = queries < answered
    answers[queries[inside]] = inside.nonzero().flatten()
    taps = torch.arange(stride * (tiles * tile - 1) + window_size, device=cpu) - window_size // 2
    shown = stride * (tile - 1) + window_size
    offset = torch.arange(shown, device=cpu) - stride * torch.arange(tile, device=cpu)[:, None]
    core = slice(window_size // 2, min(window_size // 2 + size, len(taps)))
    return Axis(
        phases=phases,
        tiles=tiles,
        tile=tile,
        step=stride * tile,
        shown=shown,
        answered=answered,
        queries=queries.clamp(max=answered - 1),
        past=(~inside).nonzero().flatten(),
        answers=answers,
        keys=reflect(stride * phase + dilation * taps, size).flatten(),
        core=core if dilation == 1 else None,
        seen=(offset >= 0) & (offset < window_size),
    )


@dataclass(frozen=True)
class Plan:
    """Blocks of columns of a map, strips of their rows, and what the queries of a strip see."""

    rows: Axis
    columns: Axis
    mask: Tensor  # (R T, U) 0 where the query sees the key, else -inf
    strips: tuple[slice, ...]  # the keys that each strip sees, in any block

    @property
    def blocks(self) -> int:
        """Return n of all phases."""
        return self.columns.phases * self.columns.tiles


@lru_cache(maxsize=32)
def plan(
    height: int,
    width: int,
    window_size: int,
    stride: int,
    dilation: int,
    *,
    backward: bool = False,
) -> Plan:
    """Divide the queries of a map into blocks of columns, and those into strips of rows."""
    spans = SPANS_BACKWARD if backward else SPANS
    rows, columns = (
        divide(size, span, window_size, stride, dilation)
        for size, span in zip((height, width), spans[stride > 1], strict=True)
    )
    seen = (rows.seen[:, None, :, None] & columns.seen[None, :, None, :]).flatten(2).flatten(0, 1)
    strips = []
    for phase in range(rows.phases):
        for i in range(rows.tiles):
            key = (phase * rows.keys_of_phase + i * rows.step) * columns.shown
            strips.append(slice(key, key + seen.shape[1]))
    mask = torch.zeros(seen.shape, device="cpu").masked_fill(~seen, float("-inf"))
    return Plan(rows, columns, mask, tuple(strips))
