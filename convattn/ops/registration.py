"""Sliding-window attention of a CPU as one operator of PyTorch, whatever computes it.

``torch.compile`` sees one call, and nothing but the maps is kept for backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from convattn.ops.dispatch import transformed
from convattn.ops.reference import attention as reference

# (q, k, v, position, num_heads, window_size, stride, dilation, scale) -> y; and, after the gradient
# of y, the same -> those of q, k and v. Maps (B, C, H, W), the results channels-last.
Forward = Callable[..., Tensor]
Backward = Callable[..., tuple[Tensor, Tensor, Tensor]]


def register(
    name: str, forward: Forward, backward: Backward, *, library: str = "convattn"
) -> Callable[..., Tensor]:
    """Register a path of ``ops.sliding_window_attention``, and return what calls it.

    Args:
        name: of the path; its operators are ``LIBRARY::NAME_forward`` and ``NAME_backward``.
        forward: computes the answers.
        backward: computes the gradients by q, k and v. That by the position is a sum of the one by
            k, and gradients of gradients are those of the formula.
        library: of PyTorch's operators.
    """
    answer = torch.library.custom_op(f"{library}::{name}_forward", forward, mutates_args=())
    derive = torch.library.custom_op(f"{library}::{name}_backward", backward, mutates_args=())
    answer.register_fake(lambda q, *_: empty_channels_last(q))
    derive.register_fake(lambda gradient, *maps: tuple(empty_channels_last(x) for x in maps[:3]))

    def differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # once: checkpointing computes them anew each time
        position = saved[3]
        by_q, by_k, by_v = derive(gradient, *saved, *ctx.options)
        by_position = None
        if position is not None and ctx.needs_input_grad[3]:
            by_position = _sum_heads(by_k, len(position), ctx.options[0]).neg().to(position.dtype)
        return by_q, by_k, by_v, by_position, *[None] * len(ctx.options)

    answer.register_autograd(differentiate, setup_context=_keep)
    derive.register_autograd(_differentiate_twice, setup_context=_keep_twice)

    def attend(
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
        if transformed():
            raise NotImplementedError(
                f"backend {name!r} knows neither torch.func nor forward-mode differentiation; "
                "use 'auto'"
            )
        for x in (q, k, v) if position is None else (q, k, v, position):
            if x.device.type not in ("cpu", "meta") or x.device != q.device:
                others = "" if x.device == q.device else f" beside queries on {q.device}"
                raise ValueError(
                    f"backend {name!r} needs maps on the CPU, got {x.device}{others}; use 'auto'"
                )
        scale = (q.shape[1] // num_heads) ** -0.5 if scale is None else scale
        return cast(
            Tensor, answer(q, k, v, position, num_heads, window_size, stride, dilation, scale)
        )

    return attend


def empty_channels_last(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty map shaped like another whose channels lie one after another.

    No view of a tensor in that order: autograd lets nobody change such an output in place.
    """
    return torch.empty(
        x.shape,
        dtype=x.dtype if dtype is None else dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what the operator was given, and nothing that it computed."""
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _sum_heads(x: Tensor, batch: int, num_heads: int) -> Tensor:
    """Sum maps (B, C, H, W) over heads, and over images if they share one: (B or 1, d, H, W).

    Images go first, and channels last: rows of memory are added up.
    """
    x = x.permute(0, 2, 3, 1)
    x = x.sum_to_size(batch, *x.shape[1:]).unflatten(3, (num_heads, -1))
    return x.sum(3).permute(0, 3, 1, 2)


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
        q, k, v = maps
        out = reference.sliding_window_attention(q, k, v, position, **options)
        gradients = torch.autograd.grad(out, maps, gradient, create_graph=True)
    asked = [gradient, *maps, *([] if position is None else [position])]
    results = torch.autograd.grad(gradients, asked, by_gradients, allow_unused=True)
    return *results, *[None] * (len(ctx.needs_input_grad) - len(results))
