"""GLMix's two similarity steps on one set of similarities: what gathers the slots gives them back.

B batch, C channels, P = HW pixels, M slots; ``keys`` (B, M, C) and tiles as in `_glmix_tiled.py`.
Clustering and dispatching compare the same slots with the same pixels: ``e = exp(keys . u / |u|)``
(B, P, M) serves both, multiplied and exponentiated once. Its columns divided by their sums gather,
its rows divided by theirs give back. No maximum is taken off, as logits are cosines times the
inverse temperature: `fits` says up to which.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops._glmix_tiled import inverse_length, tiles, wide_dtype

KEPT = 2**24  # similarities that are kept from one step to the other
MAX_SCALE = 20.0  # exp(+-20), and sums over any map, are far within the range of float32


def fits(keys: Tensor, pixels: int, scale: Tensor | float) -> bool:
    """Whether the similarities may be kept, and need no maximum taken off."""
    if type(keys) is not Tensor:
        return False  # the scale that made them, or the map, might have no value
    return keys.shape[0] * keys.shape[1] * pixels <= KEPT and abs(float(scale)) <= MAX_SCALE


def cluster(keys: Tensor, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the slots (B, M, C), and the similarities tile by tile.

    Args:
        keys: the slots' directions times the inverse temperature (B, M, C).
        tokens: pixels (B, P, C).
    """
    slots = torch.empty_like(keys, memory_format=torch.contiguous_format)
    kept = []
    for images, runs in tiles(keys, tokens):
        k, pixels = keys[images].mT, [tokens[images, run] for run in runs]
        similarities = [_similarities(k, u) for u in pixels]
        totals = [e.sum(1, dtype=wide_dtype(e)) for e in similarities]
        sums = [torch.bmm(e.mT, u) for e, u in zip(similarities, pixels, strict=True)]
        torch.div(_sum(sums), _sum(totals).unsqueeze(2), out=slots[images])
        kept += similarities
    return slots, kept


def disperse(kept: list[Tensor], slots: Tensor, like: Tensor) -> Tensor:
    """Give slots (B, M, C) back to pixels like those (B, P, C); what was kept is used up."""
    mixed = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    places = ((images, run) for images, runs in tiles(slots, like) for run in runs)
    for e, (images, run) in zip(kept, places, strict=True):
        share = e.sum(2, dtype=wide_dtype(e)).reciprocal_().to(e.dtype)
        torch.bmm(e.mul_(share.unsqueeze(2)), slots[images], out=mixed[images, run])
    return mixed


def _similarities(k: Tensor, u: Tensor) -> Tensor:
    return torch.bmm(u, k).mul_(inverse_length(u).to(u.dtype).unsqueeze(2)).exp_()


def _sum(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0, dtype=wide_dtype(parts[0]))
