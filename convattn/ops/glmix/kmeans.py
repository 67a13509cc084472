"""Clustering of a map by k-means with cosine similarity.

B batch, C channels, P = HW pixels, M slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.glmix.directions import directions
from convattn.ops.glmix.precision import wide_dtype


def cluster(centroids: Tensor, tokens: Tensor, iterations: int) -> Tensor:
    """Return the centroids (B, M, C) of tokens (B, P, C) after some iterations.

    Gradients reach ``tokens`` through the means of the last iteration.
    """
    with torch.no_grad():
        units = directions(tokens)
        for _ in range(iterations - 1):
            centroids = _means(_assign(centroids, units), tokens, centroids)
        members = _assign(centroids, units)
    return _means(members, tokens, centroids)


def _assign(centroids: Tensor, units: Tensor) -> Tensor:
    """Return a one-hot matrix (B, M, P): the most similar centroid of each pixel."""
    nearest = (units @ directions(centroids).transpose(1, 2)).argmax(dim=2)
    return F.one_hot(nearest, centroids.shape[1]).transpose(1, 2)


def _means(members: Tensor, tokens: Tensor, centroids: Tensor) -> Tensor:
    """Return the mean of the members of each slot; the old centroid if a slot has no members."""
    count = members.sum(dim=2, keepdim=True)
    # The division is before the product: a sum of thousands of pixels may overflow in float16.
    weights = (members / count.clamp_min(1).to(wide_dtype(tokens))).to(tokens.dtype)
    return torch.where(count > 0, weights @ tokens, centroids)
