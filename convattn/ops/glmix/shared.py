"""The path "shared" of GLMix: similarities are computed once, for clustering and for dispatching.

B batch, C channels, P = HW pixels, M slots; ``keys`` (B, M, C) and tiles as in `tiled.py`. Both
steps compare the same slots with the same pixels: ``e = exp(keys . u / |u|)`` (B, P, M) serves
both. Its columns divided by their sums are the weights of clustering, its rows divided by theirs
those of dispatching. No maximum is subtracted from the logits, which are cosines times the inverse
temperature: up to `MAX_SCALE` their exponentials, and sums over any map, are numbers of float32.

Two steps on rows have a kernel in C (`convattn.ops.kernels.native.rows`), the path "native" of
`SIMILARITIES` and of `SCALED_ROWS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convattn.ops.dispatch import Call, Operator, Path, no_autocast
from convattn.ops.glmix import tiled
from convattn.ops.glmix.calls import ClusterAndDispatchCall
from convattn.ops.glmix.checks import check_attended
from convattn.ops.glmix.directions import inverse_length, scaled_directions
from convattn.ops.glmix.precision import in_one_dtype, result_type, wide_dtype
from convattn.ops.kernels.native import conditions, rows
from convattn.ops.reference.glmix import MIN_NORM

MAX_KEPT = 2**24  # similarities that "auto" keeps from one step to the other: 64 MiB in float32
MAX_SCALE = 20.0


def refuses(call: ClusterAndDispatchCall) -> str | None:
    """Return why the path cannot compute a call, or None where it can."""
    if not call.on_cpu:
        return f"it computes maps on the CPU, got {call.devices}"
    if call.grad:
        return "it has no gradient, and gradients are enabled; torch.no_grad() disables them"
    if call.stride != 1:
        return f"it dispatches to all pixels of the map, got stride={call.stride}"
    if call.compiling:
        return "it reads the value of the scale, which a compiled or exported program has not"
    if call.transformed:
        return "it has no rule for torch.func or forward-mode differentiation"
    if not call.plain:
        return "it computes tensors of PyTorch's own classes, not of subclasses"
    scale = float(call.scale)
    if not abs(scale) <= MAX_SCALE:
        return f"it takes exponentials of scales of up to {MAX_SCALE:g}, got scale={scale:g}"
    return None


def prefers(call: ClusterAndDispatchCall) -> bool:
    """Return whether no gradient is required, and the similarities are not too many to be kept."""
    if call.grad or call.stride != 1 or not tiled.prefers(call):
        return False
    images, slots, _ = call.prototypes.shape
    return images * slots * call.pixels <= MAX_KEPT


def cluster_and_dispatch(
    prototypes: Tensor,
    u: Tensor,
    *,
    scale: Tensor | float,
    attend: Callable[[Tensor], Tensor],
    stride: int,
) -> Tensor:
    """Cluster the map (B, C, H, W), and dispatch the attended slots to its pixels."""
    device, dtype = u.device.type, result_type(u)
    keys, tokens = in_one_dtype(dtype, scaled_directions(prototypes, scale), tiled.to_pixels(u))
    with no_autocast(device):
        slots, kept = _cluster(keys, tokens)
    slots = check_attended(attend(slots.to(dtype)), prototypes, u)
    with no_autocast(device):
        mixed = _dispatch(kept, slots.to(keys.dtype), tokens).to(result_type(slots))
    return mixed.transpose(1, 2).unflatten(2, u.shape[-2:])


@dataclass(frozen=True)
class _Kept:
    """The similarities of a tile (b, P', M), and 1 / their sums over the slots (b, P')."""

    similarities: Tensor
    shares: Tensor


def _cluster(keys: Tensor, tokens: Tensor) -> tuple[Tensor, list[_Kept]]:
    """Return the slots (B, M, C), and the similarities of each tile."""
    slots = torch.empty_like(keys, memory_format=torch.contiguous_format)
    similarities = SIMILARITIES.choose(SimilaritiesCall(keys, tokens)).run
    kept: list[_Kept] = []
    for images, runs in tiled.tiles(keys, tokens):
        k, pixels = keys[images].mT, [tokens[images, run] for run in runs]
        parts, totals = zip(*(similarities(k, u) for u in pixels), strict=True)
        sums = [torch.bmm(e.similarities.mT, u) for e, u in zip(parts, pixels, strict=True)]
        torch.div(_sum(sums), _sum(totals).unsqueeze(2), out=slots[images])
        kept += parts
    return slots, kept


def _dispatch(kept: list[_Kept], slots: Tensor, tokens: Tensor) -> Tensor:
    """Return the dispatched slots (B, P, C); overwrite the similarities of the tiles."""
    mixed = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
    if not kept:  # no images
        return mixed
    scale = SCALED_ROWS.choose(ScaledRowsCall(kept[0].similarities)).run
    places = ((images, run) for images, runs in tiled.tiles(slots, tokens) for run in runs)
    for tile, (images, run) in zip(kept, places, strict=True):
        torch.bmm(scale(tile.similarities, tile.shares), slots[images], out=mixed[images, run])
    return mixed


def _sum(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.stack(list(parts)).sum(0, dtype=wide_dtype(parts[0]))


@dataclass
class SimilaritiesCall(Call):
    """Slots and pixels of all tiles."""

    keys: Tensor
    tokens: Tensor


@dataclass
class ScaledRowsCall(Call):
    """The rows of the first tile."""

    x: Tensor


def _similarities(k: Tensor, u: Tensor) -> tuple[_Kept, Tensor]:
    """Return the similarities of a tile, and their sums over its pixels (b, M)."""
    e = torch.bmm(u, k).mul_(inverse_length(u).to(u.dtype).unsqueeze(2)).exp_()
    wide = wide_dtype(e)
    return _Kept(e, e.sum(2, dtype=wide).reciprocal_()), e.sum(1, dtype=wide)


def _native_similarities(k: Tensor, u: Tensor) -> tuple[_Kept, Tensor]:
    e = torch.bmm(u, k)
    shares, totals = rows.similarities_(e, u, MIN_NORM)
    return _Kept(e, shares), totals


def _native_similarities_refuse(call: SimilaritiesCall) -> str | None:
    if call.tokens.stride()[1:] != (call.tokens.shape[2], 1):
        return "it reads pixels that lie one after another, with their channels last"
    return conditions.refuses(call)


def _scale_rows(x: Tensor, scales: Tensor) -> Tensor:
    return x.mul_(scales.to(x.dtype).unsqueeze(2))


# For a tile: each is chosen once for all tiles of a map.
SIMILARITIES: Operator[SimilaritiesCall] = Operator(
    "slot_similarities",
    Path("reference", _similarities, "PyTorch's operators"),
    Path("native", _native_similarities, "MEASURE", _native_similarities_refuse),
    named=False,
)
SCALED_ROWS: Operator[ScaledRowsCall] = Operator(
    "scaled_rows",
    Path("reference", _scale_rows, "PyTorch's operators"),
    Path("native", rows.scale_, "MEASURE", conditions.refuses),
    named=False,
)
