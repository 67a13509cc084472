"""The path "sdpa" of GLMix: ``scaled_dot_product_attention`` on unit vectors.

B batch, C channels, H W size of the map, M slots. Clustering and dispatching are attention with one
head each: slots attend to pixels, and pixels to slots.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from convattn.ops.dispatch import derivable
from convattn.ops.glmix.directions import directions, scaled_directions
from convattn.ops.layout import to_tokens


def soft_clustering(slots: Tensor, u: Tensor, *, scale: Tensor | float) -> Tensor:
    """Cluster the map (B, C, H, W) into slots (B, M, C)."""
    tokens = to_tokens(u)
    return _attend(scaled_directions(slots, scale), directions(tokens), tokens)


def dispatch(prototypes: Tensor, slots: Tensor, u: Tensor, *, scale: Tensor | float) -> Tensor:
    """Dispatch slots (B, M, C) to the pixels of the map (B, C, H, W)."""
    mixed = _attend(directions(to_tokens(u)), scaled_directions(prototypes, scale), slots)
    return mixed.transpose(1, 2).unflatten(2, u.shape[-2:])


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.to(v.dtype).unsqueeze(1) for t in (q, k, v))
    with derivable():
        return F.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1)
