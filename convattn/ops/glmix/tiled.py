"""GLMix's two similarity steps, tile by tile: no (M, HW) map is stored, forward or backward.

B batch, C channels, P = HW pixels, M slots. ``keys`` (B, M, C) are the slots' directions times the
inverse temperature, so that the logits are ``keys . u / |u|``: the length divides logits instead
of pixels, and no copy of the map is made. A tile is a group of images where their maps are small,
or a run of pixels of one image; its logits stay in the cache. Backward computes them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from convattn.ops.kernels.native import rows
from convattn.ops.old_dispatch import describe
from convattn.ops.reference.glmix import MIN_NORM

TILE_LOGITS = 2**19  # measured from 2^17 to 2^22: products of a good size, logits in the cache
TILE_PIXELS = 2**12  # of float16's weights the largest is no less than 1 / TILE_PIXELS

Tile = tuple[slice, list[slice]]  # images, and the runs of pixels that cover them


def cluster(keys: Tensor, tokens: Tensor) -> Tensor:
    """``softmax_p(keys . u / |u|) u`` for tokens (B, P, C) of any strides: (B, M, C)."""
    if _wants_gradient(keys, tokens):
        return _Cluster.apply(keys, tokens)
    return _cluster(keys, tokens)[0]


def disperse(keys: Tensor, slots: Tensor, tokens: Tensor) -> Tensor:
    """``softmax_m(keys . u / |u|) slots`` for tokens (B, P, C) of any strides: (B, P, C)."""
    if _wants_gradient(keys, slots, tokens):
        return _Disperse.apply(keys, slots, tokens)
    return _disperse(keys, slots, tokens)


class _Cluster(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keys: Tensor, tokens: Tensor) -> Tensor:
        slots, shares = _cluster(keys, tokens)
        ctx.save_for_backward(keys, tokens, slots, shares)
        return slots

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        keys, tokens, slots, shares = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody will differentiate the gradient
            return _differentiable(_plain_cluster, (keys, tokens), grad)
        return _cluster_backward(keys, tokens, slots, shares, grad)


class _Disperse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keys: Tensor, slots: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(keys, slots, tokens)
        return _disperse(keys, slots, tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():
            return _differentiable(_plain_disperse, ctx.saved_tensors, grad)
        keys, slots, tokens = ctx.saved_tensors
        return _disperse_backward(keys, slots, tokens, grad)


def _cluster(keys: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slots, and the share (B, M, tiles) of a slot's weight that lies in each tile."""
    means, shares = [], []
    for images, runs in tiles(keys, tokens):
        k, u = keys[images], tokens[images]
        if len(runs) == 1:
            means.append(torch.bmm(_logits(k, u).softmax(-1), u))
            shares.append(keys.new_ones(k.shape[0], k.shape[1], 1))
        else:
            mean, share = _cluster_runs(k, [u[:, run] for run in runs])
            means.append(mean)
            shares.append(share)
    return _joined(means, keys), _joined(shares, keys)


def _cluster_runs(keys: Tensor, tiles: list[Tensor]) -> tuple[Tensor, Tensor]:
    # Each tile has a softmax of its own, and weighs what its log-sum-exp says, added up online.
    wide = wide_dtype(keys)
    mean, total = torch.zeros_like(keys, dtype=wide), None
    tops = []
    for u in tiles:
        logits = _logits(keys, u)
        weights = logits.softmax(-1)
        top = logits.amax(-1).to(wide) - weights.amax(-1).to(wide).log()
        new = top if total is None else torch.logaddexp(total, top)
        share = (top - new).exp().unsqueeze(-1)
        mean.lerp_(torch.bmm(weights, u).to(wide), share)
        tops.append(top)
        total = new
    return mean.to(keys.dtype), torch.stack(tops, -1).softmax(-1).to(keys.dtype)


def _disperse(keys: Tensor, slots: Tensor, tokens: Tensor) -> Tensor:
    mixed = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
    for images, runs in tiles(keys, tokens):
        k, s = keys[images].mT, slots[images]
        for run in runs:
            u = tokens[images, run]
            logits = torch.bmm(u, k).mul_(inverse_length(u).to(u.dtype).unsqueeze(-1))
            torch.bmm(logits.softmax(-1), s, out=mixed[images, run])
    return mixed


def _cluster_backward(
    keys: Tensor, tokens: Tensor, slots: Tensor, shares: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    M, dtype, wide = keys.shape[1], keys.dtype, wide_dtype(keys)
    grad_keys = torch.zeros_like(keys, dtype=wide)
    grad_tokens = torch.empty(tokens.shape, dtype=dtype, device=tokens.device)
    for images, runs in tiles(keys, tokens):
        k = keys[images]
        for i, run in enumerate(runs):
            u = tokens[images, run]
            # In a tile the weights are its softmax times its share, which the gradient takes.
            g = grad[images] * shares[images, :, i].unsqueeze(-1)
            mean = (g.to(wide) * slots[images].to(wide)).sum(-1, keepdim=True).to(dtype)
            both = torch.cat([k, g], 1)
            maps = torch.bmm(both, u.mT)
            inverse = inverse_length(u)
            narrow = inverse.to(dtype).unsqueeze(1)
            logits, slope = maps[:, :M].mul_(narrow), maps[:, M:]
            weights = logits.softmax(-1)
            slope.sub_(mean).mul_(weights)
            radial = (slope * logits).sum(1, dtype=wide).mul_(inverse).mul_(inverse)
            torch.mul(slope, narrow, out=logits)
            slope.copy_(weights)
            grad_keys[images] += torch.bmm(logits, u)
            grad_tokens[images, run] = _tangential(torch.bmm(maps.mT, both), u, radial)
    return grad_keys.to(dtype), grad_tokens


def _disperse_backward(
    keys: Tensor, slots: Tensor, tokens: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, wide = keys.dtype, wide_dtype(keys)
    grad_keys, grad_slots = (torch.zeros_like(keys, dtype=wide) for _ in range(2))
    grad_tokens = torch.empty(tokens.shape, dtype=dtype, device=tokens.device)
    for images, runs in tiles(keys, tokens):
        k, s = keys[images], slots[images]
        for run in runs:
            u, g = tokens[images, run], grad[images, run]
            inverse = inverse_length(u)
            narrow = inverse.to(dtype).unsqueeze(-1)
            logits = torch.bmm(u, k.mT).mul_(narrow)
            weights = logits.softmax(-1)
            grad_slots[images] += torch.bmm(weights.mT, g)
            slope = torch._softmax_backward_data(torch.bmm(g, s.mT), weights, -1, dtype)
            radial = logits.mul_(slope).sum(-1, dtype=wide).mul_(inverse).mul_(inverse)
            slope.mul_(narrow)
            grad_keys[images] += torch.bmm(slope.mT, u)
            grad_tokens[images, run] = _tangential(torch.bmm(slope, k), u, radial)
    return grad_keys.to(dtype), grad_slots.to(dtype), grad_tokens


def _tangential(gradient: Tensor, u: Tensor, radial: Tensor) -> Tensor:
    """Take from the gradient by ``u`` what would only make it longer: cosines do not see that."""
    return gradient.addcmul_(u, radial.to(u.dtype).unsqueeze(-1), value=-1)


def tiles(keys: Tensor, tokens: Tensor) -> Iterator[Tile]:
    """Divide a batch into images at a time, and their pixels into runs."""
    B, P = tokens.shape[:2]
    M = keys.shape[1]
    pixels = min(P, TILE_PIXELS, max(1, TILE_LOGITS // M))
    images = max(1, TILE_LOGITS // (M * P)) if pixels == P else 1
    runs = [slice(p, p + pixels) for p in range(0, P, pixels)]
    for b in range(0, B, images):
        yield slice(b, b + images), runs


def _logits(keys: Tensor, u: Tensor) -> Tensor:
    return torch.bmm(keys, u.mT).mul_(inverse_length(u).to(u.dtype).unsqueeze(1))


def inverse_length(u: Tensor) -> Tensor:
    """``1 / |u|`` (B, P) in float32 at least; 0 where a vector has no direction."""
    length = torch.linalg.vector_norm(u, dim=-1, dtype=wide_dtype(u))
    return torch.threshold_(length, MIN_NORM, torch.inf).reciprocal_()


def directions(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last dimension; those without a direction become zero."""
    # Half precision overflows in the squares: the norm is taken in float32 at least.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide_dtype(x))
    inverse = (norm > MIN_NORM) / norm.clamp_min(MIN_NORM)
    return (x * inverse).to(x.dtype)


def scaled_directions(slots: Tensor, scale: Tensor | float) -> Tensor:
    """The directions of slots times the inverse temperature: what tokens are compared with."""
    case = describe(slots, scale) if isinstance(scale, Tensor) else describe(slots)
    if rows.takes(case) and slots.numel() > 0:
        return rows.directions(slots, MIN_NORM, float(scale))
    return scale * directions(slots)


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the type of `x`, or float32 where that is wider."""
    return torch.promote_types(x.dtype, torch.float32)


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    if not parts:  # no images
        return torch.empty_like(like)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _plain_cluster(keys: Tensor, tokens: Tensor) -> Tensor:
    return _plain_logits(keys, tokens).softmax(2) @ tokens


def _plain_disperse(keys: Tensor, slots: Tensor, tokens: Tensor) -> Tensor:
    return _plain_logits(keys, tokens).softmax(1).mT @ slots


def _plain_logits(keys: Tensor, tokens: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True, dtype=wide_dtype(tokens))
    inverse = (length > MIN_NORM) / length.clamp_min(MIN_NORM)
    return keys @ (tokens * inverse.to(tokens.dtype)).mT


def _differentiable(function: Any, saved: tuple[Tensor, ...], grad: Tensor) -> Any:
    """Gradients that can be differentiated again; the similarity maps are stored for that."""
    result = function(*saved)
    wanted = [t for t in saved if t.requires_grad]
    found = iter(torch.autograd.grad(result, wanted, grad, create_graph=True))
    return tuple(next(found) if t.requires_grad else None for t in saved)
