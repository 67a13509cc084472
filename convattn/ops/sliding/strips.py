"""Sliding-window attention on the CPU in strips of queries, a few images at a time.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window, s stride, r
dilation; n blocks of T columns of queries, strips of R rows of the queries of a block, U = (s (R -
1) + K) (s (T - 1) + K) keys in the windows of a strip of a block.

A few images at a time are copied into blocks of columns with a halo, so that the keys of a strip
are contiguous in memory. A strip is a view of all blocks and heads. It is computed by a masked
product, a softmax and a second product. The logits are not stored: the backward pass computes them
again.
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
    """Return the outputs in the dtype of q; sums and exponentials are float32 or float64."""
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
    """Return grad_q, grad_k and grad_v; the gradient of the position is a sum of grad_k."""
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
    """The workspace of a few images, and the views of their strips, which are created once.

    ``query_tiles`` and ``logits`` contain ``maps`` maps. The backward pass needs two: queries and
    output gradients, logits and their gradients.
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
            (self.queries[i], self.keys[:, span], self.values[:, span], self.outputs[i])
            for i, span in enumerate(space.tiling.strips)
        ]

    def cut(self, q: Tensor, k: Tensor, v: Tensor, origin: Tensor | None) -> None:
        """Copy the queries, keys and values of the images to the workspace."""
        self.space.cut_queries(q, self.queries)
        self.space.cut_keys(k, self.keys, origin)
        self.space.cut_keys(v, self.values)

    def attend(self, scale: float) -> None:
        """Compute the outputs of all strips."""
        for queries, keys, values, outputs in self.strips:
            self.weigh(queries, keys, scale)
            torch.bmm(self.weights, values, out=outputs)

    def weigh(self, queries: Tensor, keys: Tensor, scale: float = 1.0) -> None:
        """Compute the attention weights of a strip, the softmax of its logits: (b N n, R T, U)."""
        torch.baddbmm(self.space.mask, queries, keys.mT, alpha=scale, out=self.weights)
        torch.softmax(self.weights, 2, out=self.weights)


class _BackwardBuffers(_Buffers):
    """The workspace of the backward pass; ``outputs`` contains grad_q."""

    def __init__(self, space: Workspace, images: int) -> None:
        super().__init__(space, images, maps=2)
        blocks = len(self.weights)
        self.output_gradients = self.query_tiles[:, :blocks]
        self.grad_logits = self.logits[blocks:]
        # grad_v, then grad_k. One batched product computes both: grad_v from weights and output
        # gradients, grad_k from the gradients of the logits and the queries.
        self.grad_tiles = space.buffer("gradient tiles", (2 * blocks, *self.keys.shape[1:]))
        self.grad_strip = space.buffer(
            "gradient strip", (2 * blocks, space.mask.shape[1], self.keys.shape[2])
        )
        self.sums = [self.grad_tiles[:, span] for span in space.tiling.strips]

    def differentiate(self) -> None:
        """Accumulate the gradients of all strips; the weights are computed again."""
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
