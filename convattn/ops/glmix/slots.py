"""GLMix: pool slots from a map, cluster the map softly into the slots, dispatch the slots.

B batch, C channels, H W size of the map, M slots. Clustering and dispatching are attention with one
head; "native", "shared" and "reference" store its (M, HW) similarity maps.

Paths of `soft_clustering`, of `dispatch`, and of `cluster_and_dispatch`, which computes both:

| path        | computes                                                                |
|-------------|-------------------------------------------------------------------------|
| "tiled"     | products and softmax of a few thousand pixels at a time                 |
| "sdpa"      | ``scaled_dot_product_attention`` on unit vectors                        |
| "triton"    | blocks of slots and pixels, on a GPU: `convattn.ops.kernels.triton`     |
| "reference" | the formulas, with whole similarity maps                                |

`cluster_and_dispatch` has two more, without gradients:

| "shared"    | the similarities once, for clustering and for dispatching               |
| "native"    | "shared", with two operations in C: `convattn.ops.kernels.native`       |
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from convattn.checks import check_map, check_positive
from convattn.ops.dispatch import Operator, Path
from convattn.ops.glmix import kmeans, sdpa, shared, tiled
from convattn.ops.glmix.calls import ClusterAndDispatchCall, ClusteringCall, DispatchCall
from convattn.ops.glmix.checks import (
    check_attended,
    check_grid,
    check_number,
    check_scale,
    check_slots,
)
from convattn.ops.kernels import triton
from convattn.ops.layout import to_tokens
from convattn.ops.reference import glmix as reference
from convattn.ops.resampling.bins import average_bins

# Measured by ``python -m benchmarks.ops`` with AVX-512, batch 8, 64 slots, the maps of GLNet-STL:
# "shared" on two cores, the others on one.
_NATIVE = "one core, (64, 56x56): 15 ms, shared 19, tiled 34; bfloat16 27, 33, 49"
_SHARED = "it computes the similarities once: 1.3x to 1.45x as fast as tiled, in both dtypes"
_TILED = "against sdpa: bfloat16 2x to 4.4x, float32 1.0x, with gradients 1.05x to 1.6x"
_SDPA = "one graph node for any size; bfloat16 without AVX-512: 6x as fast as tiled, 8x as shared"
_TRITON = "not measured on a GPU"


def _in_two_steps(
    cluster: Callable[..., Tensor], disperse: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """Return a path of `cluster_and_dispatch` from a path's clustering and dispatching."""

    def run(
        prototypes: Tensor,
        u: Tensor,
        *,
        scale: Tensor | float,
        attend: Callable[[Tensor], Tensor],
        stride: int,
    ) -> Tensor:
        slots = check_attended(attend(cluster(prototypes, u, scale=scale)), prototypes, u)
        if stride > 1:
            u = u[:, :, ::stride, ::stride]
        return disperse(prototypes, slots, u, scale=scale)

    return run


SOFT_CLUSTERING: Operator[ClusteringCall] = Operator(
    "soft_clustering",
    Path("reference", reference.soft_clustering, "the formula"),
    Path("tiled", tiled.soft_clustering, _TILED, tiled.refuses, tiled.prefers),
    Path("sdpa", sdpa.soft_clustering, _SDPA),
    Path("triton", triton.cluster, _TRITON, triton.refuses, prefers=lambda call: False),
)
DISPATCH: Operator[DispatchCall] = Operator(
    "dispatch",
    Path("reference", reference.dispatch, "the formula"),
    Path("tiled", tiled.dispatch, _TILED, tiled.refuses, tiled.prefers),
    Path("sdpa", sdpa.dispatch, _SDPA),
    Path("triton", triton.disperse, _TRITON, triton.refuses, prefers=lambda call: False),
)
CLUSTER_AND_DISPATCH: Operator[ClusterAndDispatchCall] = Operator(
    "cluster_and_dispatch",
    Path("reference", _in_two_steps(reference.soft_clustering, reference.dispatch), "the formulas"),
    Path("native", shared.share_natively, _NATIVE, shared.natively_refuses, shared.prefers),
    Path("shared", shared.share, _SHARED, shared.refuses, shared.prefers),
    Path(
        "tiled",
        _in_two_steps(tiled.soft_clustering, tiled.dispatch),
        _TILED,
        tiled.refuses,
        tiled.prefers,
    ),
    Path("sdpa", _in_two_steps(sdpa.soft_clustering, sdpa.dispatch), _SDPA),
    Path(
        "triton",
        _in_two_steps(triton.cluster, triton.disperse),
        _TRITON,
        triton.refuses,
        prefers=lambda call: False,
    ),
)


def pool_slots(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average a map over a grid of bins: the slots before clustering.

    ``S0[i * columns + j] = mean of x over rows floor(iH / rows) .. ceil((i + 1)H / rows)``, and
    over columns in the same way. If the grid does not divide the map, bins overlap. If the map is
    smaller than the grid, several bins contain the same pixel.

    Args:
        x: the map (B, C, H, W).
        grid: rows and columns of slots.

    Returns:
        Slots (B, rows * columns, C), row by row.

    Raises:
        ValueError: ``x`` is not a map, or ``grid`` is not two positive integers.

    GLMix (arXiv 2411.14429), initialisation of the slots. The published code takes square grids.
    """
    check_map(x)
    check_grid(grid)
    return average_bins(x, grid)


def soft_clustering(
    slots: Tensor, u: Tensor, scale: Tensor | float, *, backend: str = "auto"
) -> Tensor:
    """Cluster a map softly into slots, each a mean over the pixels that are similar to it.

    ``slots'_m = sum_p softmax_p(scale * cos(slots_m, u_p)) u_p``

    Args:
        slots: initial slots (B, M, C), or (1, M, C) for the whole batch.
        u: the map (B, C, H, W).
        scale: inverse temperature, a number or a tensor of shape (1,).
        backend: "auto", "tiled", "sdpa", "triton" or "reference". On a CPU "auto" takes "tiled",
            unless a program is compiled, exported or transformed, or the processor has no fast
            products of the type; else "sdpa".

    Returns:
        Clustered slots (B, M, C).

    Raises:
        ValueError: shapes that do not fit, or a backend that is unknown or cannot compute the call.

    GLMix (arXiv 2411.14429), soft clustering. A zero vector has cosine 0 with all others and gets
    no gradient through the cosines; the published code divides it by a small number.
    """
    slots = check_slots(slots, u, "slots")
    check_scale(scale)
    clustered: Tensor = SOFT_CLUSTERING(ClusteringCall(slots, u, scale), backend)
    return clustered


def kmeans_clustering(slots: Tensor, u: Tensor, iterations: int) -> Tensor:
    """Cluster a map into slots by k-means with cosine similarity.

    Each iteration assigns every pixel to the slot of the largest cosine, then replaces every slot
    by the mean of its pixels; a slot without pixels does not change.

    Args:
        slots: initial slots (B, M, C), or (1, M, C) for the whole batch.
        u: the map (B, C, H, W).
        iterations: rounds of assignment and mean.

    Returns:
        Centroids (B, M, C). Only the means of the last iteration have a gradient with respect to
        ``u``. The assignments have no gradient, and the initial slots get no gradient.

    Raises:
        ValueError: shapes that do not fit, or no iteration.

    GLMix (arXiv 2411.14429), the hard clustering of its ablation, whose code is not published.
    """
    check_positive("iterations", iterations)
    centroids = check_slots(slots, u, "slots").detach()
    return kmeans.cluster(centroids, to_tokens(u), iterations)


def dispatch(
    prototypes: Tensor, slots: Tensor, u: Tensor, scale: Tensor | float, *, backend: str = "auto"
) -> Tensor:
    """Give every pixel a mixture of slots, by its similarity to their prototypes.

    ``g_p = sum_m softmax_m(scale * cos(prototypes_m, u_p)) slots_m``

    Args:
        prototypes: the slots before clustering, with which pixels are compared: (B, M, C), or
            (1, M, C) for the whole batch.
        slots: the vectors that are mixed (B, M, C).
        u: the map (B, C, H, W).
        scale: inverse temperature, a number or a tensor of shape (1,).
        backend: "auto", "tiled", "sdpa", "triton" or "reference". On a CPU "auto" takes "tiled",
            unless a program is compiled, exported or transformed, or the processor has no fast
            products of the type; else "sdpa".

    Returns:
        A map (B, C, H, W); its memory is channels-last, except on "reference".

    Raises:
        ValueError: shapes that do not fit, or a backend that is unknown or cannot compute the call.

    GLMix (arXiv 2411.14429), dispatching.
    """
    prototypes = check_slots(prototypes, u, "prototypes")
    slots = check_slots(slots, u, "slots")
    check_scale(scale)
    check_number(slots, prototypes)
    mixed: Tensor = DISPATCH(DispatchCall(prototypes, slots, u, scale), backend)
    return mixed


def cluster_and_dispatch(
    prototypes: Tensor,
    u: Tensor,
    scale: Tensor | float,
    attend: Callable[[Tensor], Tensor],
    *,
    stride: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Cluster a map into slots, apply ``attend`` to the slots, and dispatch them to the map.

    ``dispatch(prototypes, attend(soft_clustering(prototypes, u, scale)), u[::s, ::s], scale)``

    Args:
        prototypes: initial slots (B, M, C), or (1, M, C) for the whole batch.
        u: the map (B, C, H, W).
        scale: inverse temperature, a number or a tensor of shape (1,).
        attend: a function from the clustered slots (B, M, C) to new slots of this shape.
        stride: s. All pixels are clustered; the slots are dispatched to ``u[:, :, ::s, ::s]``.
        backend: "auto", "native", "shared", or a path of the two functions. "native" and "shared"
            need a CPU, disabled gradients, stride 1 and a ``scale`` of up to 20. "auto" takes them
            for up to 2^24 similarities; otherwise it takes the path of the two functions.

    Returns:
        A map (B, C, ceil(H / s), ceil(W / s)); its memory is channels-last, except on "reference".

    Raises:
        ValueError: shapes that do not fit, or a backend that is unknown or cannot compute the call.

    GLMix (arXiv 2411.14429), the global branch.
    """
    prototypes = check_slots(prototypes, u, "prototypes")
    check_scale(scale)
    check_positive("stride", stride)
    call = ClusterAndDispatchCall(prototypes, u, scale, attend, stride)
    mixed: Tensor = CLUSTER_AND_DISPATCH(call, backend)
    return mixed
