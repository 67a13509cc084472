"""GLMix: pool slots from a map, cluster the map softly into them, give the slots back to it.

B batch, C channels, H W size of the map, M slots. Both similarity steps are attention with one
head, whose (M, HW) maps are never stored, except by "shared" and "reference".

Paths of ``soft_clustering`` and ``dispatch``, among which `RULES` choose:

| backend     | computes                                                               |
|-------------|------------------------------------------------------------------------|
| "tiled"     | products and softmax of a few thousand pixels at a time, again backward |
| "sdpa"      | ``scaled_dot_product_attention`` on unit vectors                       |
| "triton"    | one program for blocks of slots and pixels, on a GPU: `ops.kernels`     |
| "reference" | the formulas, similarity maps in full                                  |

``cluster_and_dispatch``, both in one, has another, and takes those for the two where it does not
fit (`MIX_RULES`):

| "shared"    | similarities once, kept from one step to the other; no gradients        |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.checks import check_map, check_positive, check_tensor
from convattn.ops.glmix import shared, tiled
from convattn.ops.kernels import triton as kernels
from convattn.ops.layout import to_tokens
from convattn.ops.old_dispatch import (
    Case,
    Rule,
    autocasts,
    choose,
    derivable,
    describe,
    no_autocast,
    resolve,
)
from convattn.ops.processor import multiplies
from convattn.ops.reference import glmix as reference
from convattn.ops.resampling.bins import average_bins

BACKENDS = ("tiled", "sdpa", "triton", "reference")
MIX_BACKENDS = ("shared", *BACKENDS)


def _opaque(case: Case) -> bool:
    """Whether a program is written down, or transformed: sizes may be symbols there."""
    return (
        case.exporting
        or torch.compiler.is_compiling()
        or not isinstance(case.height, int)
        or case.transformed
    )


def _multiplies(case: Case) -> bool:
    """Whether batched products are the fast way: float16 has no room for long vectors."""
    return case.device == "cpu" and case.dtype != torch.float16 and multiplies(case.dtype)


# What "auto" takes. Measured on one core with AVX-512, batch 8, 64 slots, the maps of GLNet-STL.
RULES: tuple[Rule, ...] = (
    ("sdpa", _opaque, "one node for any size; loops over tiles would fix the sizes"),
    (
        "tiled",
        _multiplies,
        "against sdpa bfloat16 2 to 4.4x, float32 1.0x and with gradients 1.05 to 1.6x",
    ),
    (
        "sdpa",
        lambda _: True,
        "bfloat16 with AVX2 alone 6x, against shared 8x; float16 has no room for products with "
        "long vectors; CUDA: triton not measured",
    ),
)


def _shares(case: Case) -> bool:
    """Whether the similarities of clustering can be kept for dispatching."""
    kept = case.device == "cpu" and case.dtype != torch.float16
    return kept and case.stride == 1 and not case.grad and not _opaque(case)


# Two cores, the rest as above.
MIX_RULES: tuple[Rule, ...] = (
    (
        "shared",
        lambda case: _shares(case) and _multiplies(case),
        "similarities once: against tiled 1.3x to 1.45x, in either type",
    ),
    *RULES,
)


def pool_slots(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average a map over a grid of bins: the slots before clustering.

    ``S0[i * columns + j] = mean of x over rows floor(iH / rows) .. ceil((i + 1)H / rows)`` and the
    like for columns. Bins of a map that the grid does not divide overlap; those of a map smaller
    than the grid repeat pixels.

    Args:
        x: the map (B, C, H, W).
        grid: rows and columns of slots.

    Returns:
        Slots (B, rows * columns, C), row by row.

    Raises:
        ValueError: ``x`` is no map, or ``grid`` is not two positive integers.

    GLMix (arXiv 2411.14429), initialisation of the slots. The published code takes square grids.
    """
    check_map(x)
    check_grid(grid)
    return average_bins(x, grid)


def soft_clustering(
    slots: Tensor, u: Tensor, scale: Tensor | float, *, backend: str = "auto"
) -> Tensor:
    """Gather a map into slots, each a mean over the positions that resemble it.

    ``slots'_m = sum_p softmax_p(scale * cos(slots_m, u_p)) u_p``

    Args:
        slots: initial slots (B, M, C), or (1, M, C) for the whole batch.
        u: the map (B, C, H, W).
        scale: inverse temperature, a number or a tensor of shape (1,).
        backend: "auto", "tiled", "sdpa", "triton" or "reference".

    Returns:
        Clustered slots (B, M, C).

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.

    GLMix (arXiv 2411.14429), soft clustering. A vector that is zero has cosine 0 with everything
    and gets no gradient through it; the published code divides by a tiny number there.
    """
    slots = _check_slots(slots, u, "slots")
    _check_scale(scale)
    path = _path(backend, u, slots)
    if path == "reference":
        return reference.soft_clustering(slots, u, scale)
    if path == "triton":
        return kernels.cluster(slots, u, scale)
    if path == "tiled":
        dtype = _result_type(u)
        keys, tokens = _in_one_dtype(dtype, tiled.scaled_directions(slots, scale), _tokens(u))
        with no_autocast(u.device.type):
            return tiled.cluster(keys, tokens).to(dtype)
    tokens = to_tokens(u)
    return _attend(tiled.scaled_directions(slots, scale), tiled.directions(tokens), tokens)


def kmeans_clustering(slots: Tensor, u: Tensor, iterations: int) -> Tensor:
    """Gather a map into slots by k-means with cosine similarity.

    Each iteration assigns every position to the slot of the largest cosine, then replaces every
    slot by the mean of its positions; a slot without positions stays where it is.

    Args:
        slots: initial slots (B, M, C), or (1, M, C) for the whole batch.
        u: the map (B, C, H, W).
        iterations: rounds of assignment and mean.

    Returns:
        Centroids (B, M, C). Gradients reach ``u`` through the means of the last iteration alone:
        an assignment has none, and neither have the slots that it started from.

    Raises:
        ValueError: shapes that do not fit, or no iteration.

    GLMix (arXiv 2411.14429), the hard clustering of its ablation, whose code is not published.
    """
    check_positive("iterations", iterations)
    centroids = _check_slots(slots, u, "slots").detach()
    tokens = to_tokens(u)
    with torch.no_grad():
        directions = tiled.directions(tokens)
        for _ in range(iterations - 1):
            centroids = _cluster_means(_assign(centroids, directions), tokens, centroids)
        members = _assign(centroids, directions)
    return _cluster_means(members, tokens, centroids)


def dispatch(
    prototypes: Tensor, slots: Tensor, u: Tensor, scale: Tensor | float, *, backend: str = "auto"
) -> Tensor:
    """Give every position a mixture of slots, by its resemblance to their prototypes.

    ``g_p = sum_m softmax_m(scale * cos(prototypes_m, u_p)) slots_m``

    Args:
        prototypes: what positions are compared with, the slots before clustering: (B, M, C), or
            (1, M, C) for the whole batch.
        slots: what positions receive (B, M, C).
        u: the map (B, C, H, W).
        scale: inverse temperature, a number or a tensor of shape (1,).
        backend: "auto", "tiled", "sdpa", "triton" or "reference".

    Returns:
        A map (B, C, H, W); its memory is channels-last on the fast path.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.

    GLMix (arXiv 2411.14429), dispatching.
    """
    prototypes = _check_slots(prototypes, u, "prototypes")
    slots = _check_slots(slots, u, "slots")
    _check_scale(scale)
    _check_number(slots, prototypes)
    path = _path(backend, u, slots)
    if path == "reference":
        return reference.dispatch(prototypes, slots, u, scale)
    if path == "triton":
        return kernels.disperse(prototypes, slots, u, scale)
    if path == "tiled":
        dtype = _result_type(slots)
        parts = _in_one_dtype(dtype, tiled.scaled_directions(prototypes, scale), slots, _tokens(u))
        with no_autocast(u.device.type):
            mixed = tiled.disperse(*parts).to(dtype)
    else:
        mixed = _attend(
            tiled.directions(to_tokens(u)), tiled.scaled_directions(prototypes, scale), slots
        )
    return mixed.transpose(1, 2).unflatten(2, u.shape[-2:])


def cluster_and_dispatch(
    prototypes: Tensor,
    u: Tensor,
    scale: Tensor | float,
    attend: Callable[[Tensor], Tensor],
    *,
    stride: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Gather a map into slots, let them attend to one another, and give them back.

    ``dispatch(prototypes, attend(soft_clustering(prototypes, u, scale)), u[::s, ::s], scale)``

    Args:
        prototypes: initial slots (B, M, C), or (1, M, C) for the whole batch.
        u: the map (B, C, H, W).
        scale: inverse temperature, a number or a tensor of shape (1,).
        attend: what becomes of the clustered slots (B, M, C); it returns as many.
        stride: s. All pixels are gathered, every s-th of a row and a column receives.
        backend: "auto", "shared", or a path of the two functions. "shared" is "tiled" where
            gradients are wanted, with a stride, with ``scale`` beyond 20, and for more than 2^24
            similarities.

    Returns:
        A map (B, C, ceil(H / s), ceil(W / s)); its memory is channels-last on the fast path.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.

    GLMix (arXiv 2411.14429), the global branch.
    """
    prototypes = _check_slots(prototypes, u, "prototypes")
    _check_scale(scale)
    check_positive("stride", stride)
    path = resolve(backend, MIX_BACKENDS)
    # `attend` may have parameters that want a gradient.
    case = describe(u, stride=stride, dtype=_result_type(u))
    case = replace(case, grad=torch.is_grad_enabled())
    if path == "auto":
        path = choose(MIX_RULES, case)
    if path == "shared":
        dtype = _result_type(u)
        keys, tokens = _in_one_dtype(dtype, tiled.scaled_directions(prototypes, scale), _tokens(u))
        if _shares(case) and shared.fits(keys, tokens.shape[1], scale):
            with no_autocast(u.device.type):
                slots, kept = shared.cluster(keys, tokens)
            slots = _check_slots(attend(slots.to(dtype)), u, "attended slots")
            _check_number(slots, prototypes)
            dtype = _result_type(slots)
            with no_autocast(u.device.type):
                mixed = shared.disperse(kept, slots.to(keys.dtype), tokens).to(dtype)
            return mixed.transpose(1, 2).unflatten(2, u.shape[-2:])
        path = "tiled"
    slots = attend(soft_clustering(prototypes, u, scale, backend=path))
    if stride > 1:
        u = u[:, :, ::stride, ::stride]
    return dispatch(prototypes, slots, u, scale, backend=path)


def check_grid(grid: tuple[int, int]) -> None:
    """Raise unless ``grid`` is (rows, columns), both positive integers."""
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise ValueError(f"grid must be (rows, columns), got {grid!r}")
    check_positive("rows of the grid", grid[0])
    check_positive("columns of the grid", grid[1])


def _check_slots(slots: Tensor, u: Tensor, name: str) -> Tensor:
    check_map(u, "u")
    check_tensor(name, slots)
    B, C = u.shape[:2]
    fits = slots.dim() == 3 and slots.shape[0] in (1, B) and slots.shape[2] == C
    if not fits or slots.shape[1] < 1:
        raise ValueError(
            f"{name} must have shape ({B}, slots, {C}) for u of shape {tuple(u.shape)}, "
            f"got {tuple(slots.shape)}"
        )
    if not slots.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {slots.dtype}")
    return slots.expand(B, -1, -1)


def _check_number(slots: Tensor, prototypes: Tensor) -> None:
    if prototypes.shape[1] != slots.shape[1]:
        raise ValueError(
            f"prototypes and slots must be equally many, got {prototypes.shape[1]} and "
            f"{slots.shape[1]}"
        )


def _check_scale(scale: Tensor | float) -> None:
    if isinstance(scale, Tensor):
        if scale.numel() != 1:
            raise ValueError(f"scale must hold one number, got shape {tuple(scale.shape)}")
    elif not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a number or a tensor, got {scale!r}")


def _path(backend: str, u: Tensor, slots: Tensor) -> str:
    path, case = resolve(backend, BACKENDS), describe(u, slots, dtype=_result_type(u))
    if path == "tiled" and _opaque(case):
        return "sdpa"
    return choose(RULES, case) if path == "auto" else path


def _tokens(u: Tensor) -> Tensor:
    """The tokens (B, HW, C) of a map: a view of one that is dense in either layout."""
    return u.permute(0, 2, 3, 1).flatten(1, 2)


def _result_type(like: Tensor) -> torch.dtype:
    """The type of ``like``, or that of autocast."""
    device = like.device.type
    if autocasts(device) and like.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return like.dtype


def _in_one_dtype(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    if dtype == torch.float16:  # which has no room for products with long vectors
        dtype = torch.float32
    return [t.to(dtype) for t in tensors]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.to(v.dtype).unsqueeze(1) for t in (q, k, v))
    with derivable():
        return F.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1)


def _assign(centroids: Tensor, directions: Tensor) -> Tensor:
    """One-hot membership (B, M, HW) of every position in its most similar centroid."""
    nearest = (directions @ tiled.directions(centroids).transpose(1, 2)).argmax(dim=2)
    return F.one_hot(nearest, centroids.shape[1]).transpose(1, 2)


def _cluster_means(members: Tensor, tokens: Tensor, centroids: Tensor) -> Tensor:
    count = members.sum(dim=2, keepdim=True)
    # Divided before the product: a sum of thousands of pixels leaves half precision.
    wide = torch.promote_types(tokens.dtype, torch.float32)
    weights = (members / count.clamp_min(1).to(wide)).to(tokens.dtype)
    return torch.where(count > 0, weights @ tokens, centroids)
