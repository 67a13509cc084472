"""The path "tiled" of GLMix: no (M, HW) similarity map is stored, forward or backward.

B batch, C channels, P = HW pixels, M slots. ``keys`` (B, M, C) are the unit vectors of the slots
times the inverse temperature. The logits are ``keys . u / |u|``. The product is divided by the norm
of the pixel, instead of the pixel itself, so that the map is not copied. A tile is a group of
images with small maps, or a range of pixels of one image; the logits of a tile fit in the cache.
The backward pass computes the logits again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from convattn.ops import tuned
from convattn.ops.dispatch import no_autocast
from convattn.ops.glmix.calls import MapCall
from convattn.ops.glmix.directions import inverse_length, scaled_directions
from convattn.ops.glmix.precision import in_one_dtype, result_type, wide_dtype
from convattn.ops.processor import multiplies
from convattn.ops.reference.glmix import MIN_NORM
from convattn.ops.registration import requires_gradient

Tile = tuple[slice, list[slice]]  # images, and the ranges of pixels that cover each image


def refuses(call: MapCall) -> str | None:
    """Return why the path cannot compute a call, or None if it can."""
    if call.compiling:
        return "its loops over tiles would fix the sizes of a compiled or exported program"
    if call.transformed:
        return "it has no rule for torch.func or forward-mode differentiation"
    return None


def prefers(call: MapCall) -> bool:
    """Return whether batched products are fast: on a CPU with instructions for the dtype."""
    if call.device != "cpu" or call.symbolic:
        return False
    return call.dtype != torch.float16 and multiplies(call.dtype)


def soft_clustering(slots: Tensor, u: Tensor, *, scale: Tensor | float) -> Tensor:
    """Cluster the map (B, C, H, W) into slots (B, M, C)."""
    dtype = result_type(u)
    keys, tokens = in_one_dtype(dtype, scaled_directions(slots, scale), to_pixels(u))
    with no_autocast(u.device.type):
        if requires_gradient(keys, tokens):
            clustered: Tensor = _Cluster.apply(keys, tokens)
        else:
            clustered = _cluster(keys, tokens)[0]
        return clustered.to(dtype)


def dispatch(prototypes: Tensor, slots: Tensor, u: Tensor, *, scale: Tensor | float) -> Tensor:
    """Dispatch slots (B, M, C) to the pixels of the map (B, C, H, W)."""
    dtype = result_type(slots)
    parts = in_one_dtype(dtype, scaled_directions(prototypes, scale), slots, to_pixels(u))
    with no_autocast(u.device.type):
        mixed: Tensor = _Dispatch.apply(*parts) if requires_gradient(*parts) else _dispatch(*parts)
        return mixed.to(dtype).transpose(1, 2).unflatten(2, u.shape[-2:])


def to_pixels(u: Tensor) -> Tensor:
    """Return the pixels of a map as tokens (B, P, C): a view if the map is NCHW or NHWC."""
    return u.permute(0, 2, 3, 1).flatten(1, 2)


class _Cluster(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keys: Tensor, tokens: Tensor) -> Tensor:
        slots, shares = _cluster(keys, tokens)
        ctx.save_for_backward(keys, tokens, slots, shares)
        return slots

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        keys, tokens, slots, shares = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is required
            return _differentiable(_plain_cluster, (keys, tokens), grad)
        return _cluster_backward(keys, tokens, slots, shares, grad)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keys: Tensor, slots: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(keys, slots, tokens)
        return _dispatch(keys, slots, tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():  # a second derivative is required
            return _differentiable(_plain_dispatch, ctx.saved_tensors, grad)
        keys, slots, tokens = ctx.saved_tensors
        return _dispatch_backward(keys, slots, tokens, grad)


def _cluster(keys: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slots, and the share (B, M, tiles) of each tile in the weights of a slot."""
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
    # Each tile has its own softmax. The shares of the tiles follow from their log-sum-exps (lse).
    wide = wide_dtype(keys)
    mean, total = torch.zeros_like(keys, dtype=wide), None
    lses = []
    for u in tiles:
        logits = _logits(keys, u)
        weights = logits.softmax(-1)
        lse = logits.amax(-1).to(wide) - weights.amax(-1).to(wide).log()
        total = lse if total is None else torch.logaddexp(total, lse)
        share = (lse - total).exp().unsqueeze(-1)
        mean.lerp_(torch.bmm(weights, u).to(wide), share)
        lses.append(lse)
    return mean.to(keys.dtype), torch.stack(lses, -1).softmax(-1).to(keys.dtype)


def _dispatch(keys: Tensor, slots: Tensor, tokens: Tensor) -> Tensor:
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
            # The weights of a tile are its softmax times its share. `g` includes the share.
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


def _dispatch_backward(
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
    """Subtract the component of the gradient along ``u``: a cosine does not depend on |u|."""
    return gradient.addcmul_(u, radial.to(u.dtype).unsqueeze(-1), value=-1)


def tiles(keys: Tensor, tokens: Tensor) -> Iterator[Tile]:
    """Divide a batch into groups of images, and the pixels of each image into ranges."""
    B, P = tokens.shape[:2]
    M = keys.shape[1]
    pixels = min(P, tuned.SLOT_TILE_PIXELS, max(1, tuned.SLOT_TILE_LOGITS // M))
    images = max(1, tuned.SLOT_TILE_LOGITS // (M * P)) if pixels == P else 1
    runs = [slice(p, p + pixels) for p in range(0, P, pixels)]
    for b in range(0, B, images):
        yield slice(b, b + images), runs


def _logits(keys: Tensor, u: Tensor) -> Tensor:
    return torch.bmm(keys, u.mT).mul_(inverse_length(u).to(u.dtype).unsqueeze(1))


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    if not parts:  # no images
        return torch.empty_like(like)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _plain_cluster(keys: Tensor, tokens: Tensor) -> Tensor:
    return _plain_logits(keys, tokens).softmax(2) @ tokens


def _plain_dispatch(keys: Tensor, slots: Tensor, tokens: Tensor) -> Tensor:
    return _plain_logits(keys, tokens).softmax(1).mT @ slots


def _plain_logits(keys: Tensor, tokens: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True, dtype=wide_dtype(tokens))
    inverse = (length > MIN_NORM) / length.clamp_min(MIN_NORM)
    return keys @ (tokens * inverse.to(tokens.dtype)).mT


def _differentiable(
    function: Callable[..., Tensor], saved: tuple[Tensor, ...], grad: Tensor
) -> Any:
    """Return gradients that can be differentiated; autograd stores the similarity maps."""
    result = function(*saved)
    leaves = [t for t in saved if t.requires_grad]
    gradients = iter(torch.autograd.grad(result, leaves, grad, create_graph=True))
    return tuple(next(gradients) if t.requires_grad else None for t in saved)
