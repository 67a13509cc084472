"""Sliding-window attention on the CPU, strip by strip, with no more in memory than a few images.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window, s stride, r
dilation; n blocks of T columns of queries, strips of R rows of them, U = (s (R - 1) + K) (s (T - 1)
+ K) keys that a strip of a block sees.

A few images at a time are cut into blocks of columns with a halo, so that the keys of a strip lie
one after another in memory: a strip is a view of all blocks and heads, and takes a masked product,
a softmax and a product. Backward does so again: the logits are never kept.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from convattn.ops._backend import transformed
from convattn.ops._sliding_desk import Desk
from convattn.ops._sliding_plan import plan
from convattn.ops.reference import attention as reference


def attend_in_strips(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor | None,
    *,
    num_heads: int,
    window_size: int,
    stride: int,
    dilation: int,
    scale: float | None,
) -> Tensor:
    """Attend on the CPU: one operator for torch.compile, differentiable twice."""
    if transformed():
        raise NotImplementedError(
            "backend 'strips' knows neither torch.func nor forward-mode differentiation; use 'auto'"
        )
    if q.device.type not in ("cpu", "meta"):
        raise ValueError(f"backend 'strips' needs maps on the CPU, got {q.device}; use 'auto'")
    scale = (q.shape[1] // num_heads) ** -0.5 if scale is None else scale
    return _forward(q, k, v, position, num_heads, window_size, stride, dilation, scale)


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
    B, C, *answered = q.shape
    desk = Desk(plan(*k.shape[2:], window_size, stride, dilation), num_heads, q.dtype)
    out = q.new_empty(B, *answered, C)
    with torch.autocast("cpu", enabled=False):
        for images in desk.chunks(B):
            queries, keys, values = _cut(q, k, v, position, images, scale, desk)
            answers = desk.space("answers", queries.shape)
            for a, seen, answer in zip(queries, desk.plan.strips, answers, strict=True):
                weights = desk.weights(a, keys[:, seen])
                torch.bmm(weights, values[:, seen], out=answer)
            desk.answer(answers, out[images])
    return out.permute(0, 3, 1, 2)


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
    desk = Desk(tiles, num_heads, q.dtype)
    by_q, by_k, by_v = (x.new_empty(B, *x.shape[2:], C) for x in (q, k, v))
    with torch.autocast("cpu", enabled=False):
        for images in desk.chunks(B):
            maps = _cut(q, k, v, position, images, scale, desk)
            wanted = desk.queries("wanted", gradient[images].permute(0, 2, 3, 1))
            by_queries, by_keys, by_values = _gradients(*maps, wanted, desk)
            desk.answer(by_queries.mul_(scale), by_q[images])
            desk.sum_copies(by_keys, by_k[images])
            desk.sum_copies(by_values, by_v[images])
    by_q, by_k, by_v = (x.permute(0, 3, 1, 2) for x in (by_q, by_k, by_v))
    return by_q, by_k, by_v


def _cut(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor | None,
    images: slice,
    scale: float,
    desk: Desk,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut queries, keys and values of a few images."""
    asked = q[images].permute(0, 2, 3, 1)
    keys = desk.keys("keys", k[images])
    if position is not None:
        there = position if len(position) == 1 else position[images]
        there = desk.keys("there", there, num_heads=1)
        size = desk.plan.blocks * there[0].numel()
        keys.view(-1, desk.num_heads, size).sub_(there.view(-1, 1, size))
    return desk.queries("queries", asked).mul_(scale), keys, desk.keys("values", v[images])


def _gradients(
    queries: Tensor, keys: Tensor, values: Tensor, wanted: Tensor, desk: Desk
) -> tuple[Tensor, Tensor, Tensor]:
    """Add up what the strips of a few images say, with their weights computed again."""
    by_queries = desk.space("by_queries", queries.shape)
    by_keys = desk.space("by_keys", keys.shape).zero_()
    by_values = desk.space("by_values", values.shape).zero_()
    for i, seen in enumerate(desk.plan.strips):
        a, b, c, by_answer = queries[i], keys[:, seen], values[:, seen], wanted[i]
        weights = desk.weights(a, b)
        by_values[:, seen] += desk.product("by_key", weights.mT, by_answer)
        by_logits = desk.product("by_logits", by_answer, c.mT)
        torch._softmax_backward_data(by_logits, weights, 2, weights.dtype, grad_input=by_logits)
        torch.bmm(by_logits, b, out=by_queries[i])
        by_keys[:, seen] += desk.product("by_key", by_logits.mT, a)
    return by_queries, by_keys, by_values


_forward = torch.library.custom_op("convattn::strips_forward", strips_forward, mutates_args=())
_backward = torch.library.custom_op("convattn::strips_backward", strips_backward, mutates_args=())


@_forward.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    B, C, H, W = q.shape
    return q.new_empty(B, H, W, C).permute(0, 3, 1, 2)


@_backward.register_fake
def _(gradient: Tensor, *maps: Any) -> tuple[Tensor, ...]:
    return tuple(
        x.new_empty(x.shape[0], *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2) for x in maps[:3]
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what the operator was given, and nothing that it computed."""
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    position = ctx.saved_tensors[3]
    by_q, by_k, by_v = _backward(gradient, *ctx.saved_tensors, *ctx.options)
    by_position = None
    if position is not None and ctx.needs_input_grad[3]:
        by_position = -by_k.unflatten(1, (ctx.options[0], -1)).sum(1)
        by_position = by_position.sum_to_size(position.shape).to(position.dtype)
    return by_q, by_k, by_v, by_position, *[None] * len(ctx.options)


def _keep_twice(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _differentiate_twice(ctx: Any, *by_gradients: Tensor) -> tuple[Any, ...]:
    """Differentiate the gradients of the formula: rare enough for its K^2 copies."""
    names = ("num_heads", "window_size", "stride", "dilation", "scale")
    options = dict(zip(names, ctx.options, strict=True))
    with torch.enable_grad():
        given = [x if x is None else x.detach().requires_grad_() for x in ctx.saved_tensors]
        gradient, *maps, position = cast(list[Tensor], given)
        out = reference.sliding_window_attention(*maps, position=position, **options)
        gradients = torch.autograd.grad(out, maps, gradient, create_graph=True)
    asked = [gradient, *maps, *([] if position is None else [position])]
    results = torch.autograd.grad(gradients, asked, by_gradients, allow_unused=True)
    return *results, *[None] * (len(ctx.needs_input_grad) - len(results))


_forward.register_autograd(_differentiate, setup_context=_keep)
_backward.register_autograd(_differentiate_twice, setup_context=_keep_twice)
