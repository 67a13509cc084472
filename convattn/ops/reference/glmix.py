"""The reference paths of GLMix: loops over bins, and whole similarity maps.

B batch, C channels, H W size of the map, M slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A vector with this norm or less has no direction: its cosine with any vector is 0.
MIN_NORM = 1e-6


def pool_slots(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average each bin of the grid in a loop."""
    H, W = x.shape[-2:]
    rows, columns = grid
    slots = [x[:, :, r, c].mean(dim=(2, 3)) for r in _bins(H, rows) for c in _bins(W, columns)]
    return torch.stack(slots, dim=1)


def soft_clustering(slots: Tensor, u: Tensor, scale: Tensor | float) -> Tensor:
    """Average the map with the softmax over positions of each slot's similarity map."""
    weights = (scale * _cosine(slots, u)).softmax(dim=2).to(u.dtype)
    return torch.einsum("bmp,bcp->bmc", weights, u.flatten(2))


def kmeans_clustering(slots: Tensor, u: Tensor, iterations: int) -> Tensor:
    """Replace each slot by the mean of its nearest positions, repeatedly; keep empty slots."""
    for _ in range(iterations):
        nearest = _cosine(slots.detach(), u.detach()).argmax(dim=1)
        start, images = slots.detach(), []
        for b in range(u.shape[0]):
            tokens = u[b].flatten(1).T
            members = [tokens[nearest[b] == m] for m in range(start.shape[1])]
            means = [t.mean(dim=0) if len(t) else start[b, m] for m, t in enumerate(members)]
            images.append(torch.stack(means))
        slots = torch.stack(images) if images else slots
    return slots


def dispatch(prototypes: Tensor, slots: Tensor, u: Tensor, scale: Tensor | float) -> Tensor:
    """Average the slots with the softmax over slots of each position's similarities."""
    weights = (scale * _cosine(prototypes, u)).softmax(dim=1).to(slots.dtype)
    mixed = torch.einsum("bmp,bmc->bcp", weights, slots)
    return mixed.unflatten(2, u.shape[-2:])


def _bins(size: int, number: int) -> list[slice]:
    """Return each bin from the floor of its start to the ceiling of its end."""
    return [slice(i * size // number, -(-(i + 1) * size // number)) for i in range(number)]


def _cosine(slots: Tensor, u: Tensor) -> Tensor:
    """Return the cosine of every slot with every position, (B, M, HW)."""
    return torch.einsum("bmc,bcp->bmp", _unit(slots, dim=2), _unit(u.flatten(2), dim=1))


def _unit(x: Tensor, dim: int) -> Tensor:
    # Squares overflow in half precision, so that the norm is computed in float32 or float64.
    wide = x if x.dtype == torch.float64 else x.float()
    norm = wide.square().sum(dim=dim, keepdim=True).clamp_min(MIN_NORM**2).sqrt()
    return torch.where(norm > MIN_NORM, wide / norm, 0.0).to(x.dtype)
