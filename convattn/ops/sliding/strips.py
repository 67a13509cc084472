"""Sliding-window attention on the CPU, strip by strip, with no more in memory than a few images.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window, s stride, r
dilation; n blocks of T columns of queries, strips of R rows of them, U = (s (R - 1) + K) (s (T - 1)
+ K) keys that a strip of a block sees.

A few images at a time are cut into blocks of columns with a halo, so that the keys of a strip lie
one after another in memory: a strip is a view of all blocks and heads, and takes a masked product,
a softmax and a product. Backward does so again: the logits are never kept.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor

from convattn.ops.registration import empty_channels_last, register_sliding_window
from convattn.ops.sliding.tiling import tile_map
from convattn.ops.sliding.workspace import Workspace


def strips_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor | None,
    num_heads: int,
    window_size: int,
    stride: int,
    dilation: int,
    scale: float,
) -> Tensor:
    """Return the outputs in q's type; sums and exponentials are float32 at least."""
    B, C = q.shape[:2]
    H, W = k.shape[2:]
    tiling = tile_map(H, W, window_size, stride, dilation)
    space = Workspace(tiling, num_heads, C, q.dtype)
    buffers = cache(partial(_Buffers, space))
    result = empty_channels_last(q)
    out = result.permute(0, 2, 3, 1)
    with torch.autocast("cpu", enabled=False):
        for images in space.chunks(B):
            part = buffers(images.stop - images.start)
            part.cut(q[images], k[images], v[images], space.origin(position, images))
            part.attend(scale)
            space.paste_outputs(part.outputs, out[images])
    return result


def strips_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor | None,
    num_heads: int,
    window_size: int,
    stride: int,
    dilation: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v; that of the position is a sum of that of k."""
    B, C, H, W = k.shape
    tiling = tile_map(H, W, window_size, stride, dilation, backward=True)
    space = Workspace(tiling, num_heads, C, q.dtype)
    buffers = cache(partial(_BackwardBuffers, space))
    results = empty_channels_last(q), empty_channels_last(k), empty_channels_last(v)
    grad_q, grad_k, grad_v = (x.permute(0, 2, 3, 1) for x in results)
    with torch.autocast("cpu", enabled=False):
        for images in space.chunks(B, maps=2):
            part = buffers(images.stop - images.start)
            part.cut(q[images], k[images], v[images], space.origin(position, images))
            part.queries.mul_(scale)
            space.cut_queries(gradient[images], part.output_gradients)
            part.differentiate()
            space.paste_outputs(part.outputs.mul_(scale), grad_q[images])
            grad_values, grad_keys = part.grad_tiles.chunk(2)
            space.sum_copies(grad_keys, grad_k[images])
            space.sum_copies(grad_values, grad_v[images])
    return results


class _Buffers:
    """The memory that a few images are computed in, and the views of their strips, made once.

    ``query_tiles`` and ``logits`` hold ``maps`` maps: backward computes with two side by side.
    """

    def __init__(self, space: Workspace, images: int, maps: int = 1) -> None:
        self.space = space
        strips, blocks, *tile = space.query_shape(images)
        self.query_tiles = space.buffer("query tiles", (strips, maps * blocks, *tile))
        self.queries = self.query_tiles[:, -blocks:]
        self.outputs = space.buffer("output tiles", (strips, blocks, *tile))
        self.keys, self.values = (
            space.buffer(name, space.key_shape(images)) for name in ("keys", "values")
        )
        self.logits = space.buffer("logits", (maps * blocks, *space.mask.shape))
        self.weights = self.logits[:blocks]
        self.strips = [
            (self.queries[i], self.keys[:, seen], self.values[:, seen], self.outputs[i])
            for i, seen in enumerate(space.tiling.strips)
        ]

    def cut(self, q: Tensor, k: Tensor, v: Tensor, origin: Tensor | None) -> None:
        """Cut queries, keys and values of as many images."""
        self.space.cut_queries(q, self.queries)
        self.space.cut_keys(k, self.keys, origin)
        self.space.cut_keys(v, self.values)

    def attend(self, scale: float) -> None:
        """Compute the outputs of all strips."""
        for queries, keys, values, outputs in self.strips:
            self.weigh(queries, keys, scale)
            torch.bmm(self.weights, values, out=outputs)

    def weigh(self, queries: Tensor, keys: Tensor, scale: float = 1.0) -> None:
        """Compute the softmax of the logits of a strip: (b N n, R T, U)."""
        torch.baddbmm(self.space.mask, queries, keys.mT, alpha=scale, out=self.weights)
        torch.softmax(self.weights, 2, out=self.weights)


class _BackwardBuffers(_Buffers):
    """The same with gradients; ``outputs`` holds those of the queries."""

    def __init__(self, space: Workspace, images: int) -> None:
        super().__init__(space, images, maps=2)
        blocks = len(self.weights)
        self.output_gradients = self.query_tiles[:, :blocks]
        self.grad_logits = self.logits[blocks:]
        # Gradients of values, then of keys: products of weights and output gradients, and of the
        # gradients of logits and queries, which lie in the same order.
        self.grad_tiles = space.buffer("gradient tiles", (2 * blocks, *self.keys.shape[1:]))
        self.grad_strip = space.buffer(
            "gradient strip", (2 * blocks, space.mask.shape[1], self.keys.shape[2])
        )
        self.sums = [self.grad_tiles[:, seen] for seen in space.tiling.strips]

    def differentiate(self) -> None:
        """Add up the gradients of all strips, with their weights computed again."""
        self.grad_tiles.zero_()
        weights, grad_logits, logits = self.weights, self.grad_logits, self.logits.mT
        for strip, output_gradients, query_tiles, sums in zip(
            self.strips, self.output_gradients, self.query_tiles, self.sums, strict=True
        ):
            queries, keys, values, grad_queries = strip
            self.weigh(queries, keys)
            torch.bmm(output_gradients, values.mT, out=grad_logits)
            torch._softmax_backward_data(
                grad_logits, weights, 2, weights.dtype, grad_input=grad_logits
            )
            torch.bmm(grad_logits, keys, out=grad_queries)
            sums.add_(torch.bmm(logits, query_tiles, out=self.grad_strip))


attend_in_strips = register_sliding_window("strips", strips_forward, strips_backward)
