"""GLMix's two similarity steps on one set of similarities: what gathers the slots gives them back.

B batch, C channels, P = HW pixels, M slots; ``keys`` (B, M, C) and tiles as in `_glmix_tiled.py`.
Clustering and dispatching compare the same slots with the same pixels: ``e = exp(keys . u / |u|)``
(B, P, M) serves both, multiplied and exponentiated once. Its columns divided by their sums gather,
its rows divided by theirs give back. No maximum is taken off, as logits are cosines times the
inverse temperature: `fits` says up to which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convattn.ops.glmix.tiled import inverse_length, tiles, wide_dtype
from convattn.ops.kernels.native import rows
from convattn.ops.old_dispatch import describe
from convattn.ops.reference.glmix import MIN_NORM

KEPT = 2**24  # similarities that are kept from one step to the other
MAX_SCALE = 20.0  # exp(+-20), and sums over any map, are far within the range of float32


def fits(keys: Tensor, pixels: int, scale: Tensor | float) -> bool:
    """Whether the similarities may be kept, and need no maximum taken off."""
    if type(keys) is not Tensor:
        return False  # the scale that made them, or the map, might have no value
    return keys.shape[0] * keys.shape[1] * pixels <= KEPT and abs(float(scale)) <= MAX_SCALE


@dataclass(frozen=True)
class Kept:
    """The similarities of a tile (b, P', M), and 1 / their sums over the slots (b, P')."""

    similarities: Tensor
    shares: Tensor


def cluster(keys: Tensor, tokens: Tensor) -> tuple[Tensor, list[Kept]]:
    """Return the slots (B, M, C), and what `disperse` needs tile by tile.

    Args:
        keys: the slots' directions times the inverse temperature (B, M, C).
        tokens: pixels (B, P, C).
    """
    slots = torch.empty_like(keys, memory_format=torch.contiguous_format)
    native = rows.takes(describe(tokens)) and tokens.stride()[1:] == (tokens.shape[2], 1)
    similarities = _native_similarities if native else _similarities
    kept: list[Kept] = []
    for images, runs in tiles(keys, tokens):
        k, pixels = keys[images].mT, [tokens[images, run] for run in runs]
        parts, totals = zip(*(similarities(k, u) for u in pixels), strict=True)
        sums = [torch.bmm(e.similarities.mT, u) for e, u in zip(parts, pixels, strict=True)]
        torch.div(_sum(sums), _sum(totals).unsqueeze(2), out=slots[images])
        kept += parts
    return slots, kept


def disperse(kept: list[Kept], slots: Tensor, like: Tensor) -> Tensor:
    """Give slots (B, M, C) back to pixels like those (B, P, C); what was kept is used up."""
    mixed = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    places = ((images, run) for images, runs in tiles(slots, like) for run in runs)
    native = rows.takes(describe(like))
    for tile, (images, run) in zip(kept, places, strict=True):
        e, shares = tile.similarities, tile.shares
        e = rows.scale_(e, shares) if native else e.mul_(shares.to(e.dtype).unsqueeze(2))
        torch.bmm(e, slots[images], out=mixed[images, run])
    return mixed


def _similarities(k: Tensor, u: Tensor) -> tuple[Kept, Tensor]:
    """Return the similarities of a tile, and their sums over its pixels (b, M)."""
    e = torch.bmm(u, k).mul_(inverse_length(u).to(u.dtype).unsqueeze(2)).exp_()
    wide = wide_dtype(e)
    return Kept(e, e.sum(2, dtype=wide).reciprocal_()), e.sum(1, dtype=wide)


def _native_similarities(k: Tensor, u: Tensor) -> tuple[Kept, Tensor]:
    e = torch.bmm(u, k)
    shares, totals = rows.similarities_(e, u, MIN_NORM)
    return Kept(e, shares), totals


def _sum(parts: Sequence[Tensor]) -> Tensor:
    return (
        parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0, dtype=wide_dtype(parts[0]))
    )
