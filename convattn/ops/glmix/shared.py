"""The paths "shared" and "native" of GLMix: clustering and dispatching share the similarities.

B batch, C channels, P = HW pixels, M slots; ``keys`` (B, M, C) and tiles as in `tiled.py`. Both
steps compare the same slots with the same pixels, so that ``e = exp(keys . u / |u|)`` (B, P, M) is
computed once. The columns of e divided by their sums are the weights of clustering. The rows of e
divided by their sums are the weights of dispatching. The logits are cosines times the inverse
temperature. Up to a scale of `MAX_SCALE`, their exponentials and the sums over any map are finite
in float32, so that the maximum of the logits is not subtracted.

The path "native" computes two operations on rows by kernels in C.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from convattn.ops import tuned
from convattn.ops.dispatch import no_autocast
from convattn.ops.glmix import tiled
from convattn.ops.glmix.calls import ClusterAndDispatchCall
from convattn.ops.glmix.checks import check_attended
from convattn.ops.glmix.directions import inverse_length, scaled_directions
from convattn.ops.glmix.precision import in_one_dtype, result_type, wide_dtype
from convattn.ops.glmix.tiled import tiles, to_pixels
from convattn.ops.kernels.native import conditions, rows
from convattn.ops.reference.glmix import MIN_NORM

MAX_SCALE = 20.0

_COMPILED = "it needs the value of the scale, which is unknown in a compiled or exported program"


def refuses(call: ClusterAndDispatchCall) -> str | None:
    """Return why the path "shared" cannot compute a call, or None if it can."""
    if not call.on_cpu:
        return f"it computes maps on the CPU, got {call.devices}"
    if call.grad:
        return "it has no gradient, and one is required; torch.no_grad() disables gradients"
    if call.compiling:
        return _COMPILED
    if call.transformed:
        return "it has no rule for torch.func or forward-mode differentiation"
    if not call.plain:
        return "it computes tensors of PyTorch's own classes, not of subclasses"
    return _limits_refuse(call)


def natively_refuses(call: ClusterAndDispatchCall) -> str | None:
    """Return why the path "native" cannot compute a call, or None if it can."""
    return conditions.refuses(call) or _limits_refuse(call)


def _limits_refuse(call: ClusterAndDispatchCall) -> str | None:
    if call.compiling:
        return _COMPILED
    if call.stride != 1:
        return f"it supports stride=1 only, got stride={call.stride}"
    scale = float(call.scale)
    if not abs(scale) <= MAX_SCALE:
        return f"it supports scales up to {MAX_SCALE:g}, got scale={scale:g}"
    return None


def prefers(call: ClusterAndDispatchCall) -> bool:
    """Return whether no gradient is required, and the similarities are few enough to be stored."""
    if call.grad or call.stride != 1 or not tiled.prefers(call):
        return False
    images, slots, _ = call.prototypes.shape
    return images * slots * call.pixels <= tuned.SIMILARITIES_KEPT


class _Kept(NamedTuple):
    """The similarities of a tile (b, P', M), and the inverse sums over the slots (b, P')."""

    similarities: Tensor
    inverse_sums: Tensor


def _path(
    similarities: Callable[[Tensor, Tensor], tuple[_Kept, Tensor]],
    scale_rows: Callable[[Tensor, Tensor], Tensor],
) -> Callable[..., Tensor]:
    """Return a path of `cluster_and_dispatch` that uses two functions on the rows of a tile."""

    def run(
        prototypes: Tensor,
        u: Tensor,
        *,
        scale: Tensor | float,
        attend: Callable[[Tensor], Tensor],
        stride: int,
    ) -> Tensor:
        device, dtype = u.device.type, result_type(u)
        keys, tokens = in_one_dtype(dtype, scaled_directions(prototypes, scale), to_pixels(u))
        with no_autocast(device):
            slots, kept = _cluster(keys, tokens, similarities)
        slots = check_attended(attend(slots.to(dtype)), prototypes, u)
        with no_autocast(device):
            mixed = _dispatch(kept, slots.to(keys.dtype), tokens, scale_rows)
            mixed = mixed.to(result_type(slots))
        return mixed.transpose(1, 2).unflatten(2, u.shape[-2:])

    return run


def _cluster(
    keys: Tensor,
    tokens: Tensor,
    similarities: Callable[[Tensor, Tensor], tuple[_Kept, Tensor]],
) -> tuple[Tensor, list[_Kept]]:
    """Return the slots (B, M, C), and the similarities of each tile."""
    slots = torch.empty_like(keys, memory_format=torch.contiguous_format)
    kept: list[_Kept] = []
    for images, runs in tiles(keys, tokens):
        k, pixels = keys[images].mT, [tokens[images, run] for run in runs]
        parts, totals = zip(*(similarities(k, u) for u in pixels), strict=True)
        sums = [torch.bmm(e.similarities.mT, u) for e, u in zip(parts, pixels, strict=True)]
        torch.div(_sum(sums), _sum(totals).unsqueeze(2), out=slots[images])
        kept += parts
    return slots, kept


def _dispatch(
    kept: list[_Kept],
    slots: Tensor,
    tokens: Tensor,
    scale_rows: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return the mixtures of slots (B, P, C); the stored similarities are overwritten."""
    mixed = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
    places = ((images, run) for images, runs in tiles(slots, tokens) for run in runs)
    for tile, (images, run) in zip(kept, places, strict=True):
        torch.bmm(scale_rows(*tile), slots[images], out=mixed[images, run])
    return mixed


def _sum(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.stack(list(parts)).sum(0, dtype=wide_dtype(parts[0]))


def _similarities(k: Tensor, u: Tensor) -> tuple[_Kept, Tensor]:
    """Return the similarities of a tile, and their sums over its pixels (b, M)."""
    e = torch.bmm(u, k).mul_(inverse_length(u).to(u.dtype).unsqueeze(2)).exp_()
    wide = wide_dtype(e)
    return _Kept(e, e.sum(2, dtype=wide).reciprocal_()), e.sum(1, dtype=wide)


def _scale_rows(e: Tensor, scales: Tensor) -> Tensor:
    return e.mul_(scales.to(e.dtype).unsqueeze(2))


def _similarities_natively(k: Tensor, u: Tensor) -> tuple[_Kept, Tensor]:
    u = u.contiguous()  # copies the tile if the map is not channels-last
    e = torch.bmm(u, k)
    inverse_sums, totals = rows.similarities_(e, u, MIN_NORM)
    return _Kept(e, inverse_sums), totals


share = _path(_similarities, _scale_rows)
share_natively = _path(_similarities_natively, rows.scale_)
