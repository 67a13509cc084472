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
from convattn.ops.sliding.tiling import plan
from convattn.ops.sliding.workspace import Desk


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
    """Return the answers in q's type; sums and exponentials are float32 at least."""
    B, C = q.shape[:2]
    desk = Desk(plan(*k.shape[2:], window_size, stride, dilation), num_heads, C, q.dtype)
    tables = cache(partial(_Table, desk))
    result = empty_channels_last(q)
    out = result.permute(0, 2, 3, 1)
    with torch.autocast("cpu", enabled=False):
        for images in desk.chunks(B):
            table = tables(images.stop - images.start)
            table.cut(q[images], k[images], v[images], desk.origin(position, images))
            table.attend(scale)
            desk.answer(table.answers, out[images])
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
    """Return the gradients by q, k and v; that by the position is a sum of that by k."""
    B, C, H, W = k.shape
    tiles = plan(H, W, window_size, stride, dilation, backward=True)
    desk = Desk(tiles, num_heads, C, q.dtype)
    tables = cache(partial(_BackwardTable, desk))
    results = empty_channels_last(q), empty_channels_last(k), empty_channels_last(v)
    by_q, by_k, by_v = (x.permute(0, 2, 3, 1) for x in results)
    with torch.autocast("cpu", enabled=False):
        for images in desk.chunks(B, maps=2):
            table = tables(images.stop - images.start)
            table.cut(q[images], k[images], v[images], desk.origin(position, images))
            table.queries.mul_(scale)
            desk.queries(gradient[images], table.wanted)
            table.differentiate()
            desk.answer(table.answers.mul_(scale), by_q[images])
            by_values, by_keys = table.by_shown.chunk(2)
            desk.sum_copies(by_keys, by_k[images])
            desk.sum_copies(by_values, by_v[images])
    return results


class _Table:
    """What a few images are computed in, with the views of their strips, which are made once.

    ``asked`` and ``logits`` have room for ``maps`` maps: backward computes with two side by side.
    """

    def __init__(self, desk: Desk, images: int, maps: int = 1) -> None:
        self.desk = desk
        strips, blocks, *tile = desk.asked(images)
        self.asked = desk.space("asked", (strips, maps * blocks, *tile))
        self.queries = self.asked[:, -blocks:]
        self.answers = desk.space("answers", (strips, blocks, *tile))
        self.keys, self.values = (
            desk.space(name, desk.shown(images)) for name in ("keys", "values")
        )
        self.logits = desk.space("logits", (maps * blocks, *desk.mask.shape))
        self.weights = self.logits[:blocks]
        self.strips = [
            (self.queries[i], self.keys[:, seen], self.values[:, seen], self.answers[i])
            for i, seen in enumerate(desk.plan.strips)
        ]

    def cut(self, q: Tensor, k: Tensor, v: Tensor, origin: Tensor | None) -> None:
        """Cut queries, keys and values of as many images."""
        self.desk.queries(q, self.queries)
        self.desk.keys(k, self.keys, origin)
        self.desk.keys(v, self.values)

    def attend(self, scale: float) -> None:
        """Compute the answers of all strips."""
        for queries, keys, values, answers in self.strips:
            self.weigh(queries, keys, scale)
            torch.bmm(self.weights, values, out=answers)

    def weigh(self, queries: Tensor, keys: Tensor, scale: float = 1.0) -> None:
        """Compute the softmax of the logits of a strip: (b N n, R T, U)."""
        torch.baddbmm(self.desk.mask, queries, keys.mT, alpha=scale, out=self.weights)
        torch.softmax(self.weights, 2, out=self.weights)


class _BackwardTable(_Table):
    """The same, with gradients: ``answers`` are those by the queries, ``wanted`` by the answers."""

    def __init__(self, desk: Desk, images: int) -> None:
        super().__init__(desk, images, maps=2)
        blocks = len(self.weights)
        self.wanted = self.asked[:, :blocks]
        self.by_logits = self.logits[blocks:]
        # values, then keys: their gradients are products of weights and what is wanted, and of the
        # gradients of logits and queries, which lie in the same order
        self.by_shown = desk.space("by_shown", (2 * blocks, *self.keys.shape[1:]))
        self.by_seen = desk.space("by_seen", (2 * blocks, desk.mask.shape[1], self.keys.shape[2]))
        self.sums = [self.by_shown[:, seen] for seen in desk.plan.strips]

    def differentiate(self) -> None:
        """Add up what the strips say, with their weights computed again."""
        self.by_shown.zero_()
        weights, by_logits, logits = self.weights, self.by_logits, self.logits.mT
        for strip, wanted, asked, sums in zip(
            self.strips, self.wanted, self.asked, self.sums, strict=True
        ):
            queries, keys, values, by_queries = strip
            self.weigh(queries, keys)
            torch.bmm(wanted, values.mT, out=by_logits)
            torch._softmax_backward_data(by_logits, weights, 2, weights.dtype, grad_input=by_logits)
            torch.bmm(by_logits, keys, out=by_queries)
            sums.add_(torch.bmm(logits, asked, out=self.by_seen))


attend_in_strips = register_sliding_window("strips", strips_forward, strips_backward)
