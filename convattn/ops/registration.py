"""Define operators of PyTorch for a CPU: implementation, fake tensors, FLOP formula, gradient.

The low-level functions of ``torch.library`` define the operators. They add 3 us to a call without a
gradient; `torch.library.custom_op` adds at least 10 us.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from convattn.ops.reference import attention as reference

NAMESPACE = "convattn"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")

# Forward: (q, k, v, position, num_heads, window_size, stride, dilation, scale) -> y.
# Backward: (grad_y, the same arguments) -> grad_q, grad_k, grad_v.
# Maps are (B, C, H, W); the results are channels-last.
Forward = Callable[..., Tensor]
Backward = Callable[..., tuple[Tensor, Tensor, Tensor]]
_MAPS = "Tensor q, Tensor k, Tensor v, Tensor? position"
_OPTIONS = "SymInt num_heads, SymInt window_size, SymInt stride, SymInt dilation, float scale"


def define(
    schema: str,
    compute: Callable[..., Any],
    fake: Callable[..., Any],
    flops: Callable[..., int] | None = None,
) -> Callable[..., Any]:
    """Define an operator ``convattn::NAME`` of a CPU, without a gradient formula.

    Args:
        schema: ``NAME(arguments) -> results``, or ``NAME.OVERLOAD(...)``.
        compute: computes the results on a CPU.
        fake: allocates the results, for tensors that have no data.
        flops: counts the operations of matrix products from the shapes of the arguments; None if
            the operator has no matrix product.

    Returns:
        The operator.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, compute, "CPU")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    name, _, overload = name.partition(".")
    packet = getattr(getattr(torch.ops, NAMESPACE), name)
    if flops is not None:
        register_flop_formula(packet)(flops)
    return cast(Callable[..., Any], getattr(packet, overload or "default"))


def requires_gradient(*tensors: Tensor | None) -> bool:
    """Return whether autograd records operations on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def check_no_gradient(name: str, *tensors: Tensor | None) -> None:
    """Raise an error if a gradient is required; the operator has no gradient formula.

    Raises:
        RuntimeError: gradients are enabled, and a tensor requires a gradient.
    """
    if requires_gradient(*tensors):
        raise RuntimeError(f"the kernel {name!r} has no gradient: call it under torch.no_grad()")


def register_sliding_window(name: str, forward: Forward, backward: Backward) -> Forward:
    """Register a path of ``ops.sliding_window_attention``, and return the function that calls it.

    ``torch.compile`` traces the path as one operator, and only the maps are stored for the backward
    pass. If no gradient is required, the operator is called without an autograd formula.

    Args:
        name: name of the path; its operators are ``sliding_window_NAME`` and
            ``sliding_window_NAME_backward``.
        forward: computes the outputs.
        backward: computes grad_q, grad_k and grad_v. The gradient of the position is a sum of
            grad_k. Second derivatives are computed by the reference.
    """
    operator, fake = f"sliding_window_{name}", lambda q, *_: empty_channels_last(q)
    # An autograd formula costs 4 us per call. If no gradient is required, an overload without a
    # formula is called. This overload is defined first: PyTorch drops the formula of an operator
    # when a second overload is defined.
    infer = define(f"{operator}.no_gradient({_MAPS}, {_OPTIONS}) -> Tensor", forward, fake)
    answer = define(
        f"{operator}({_MAPS}, {_OPTIONS}) -> Tensor",
        forward,
        fake,
        lambda *shapes, **_: _count_products(2, *shapes),
    )
    derive = define(
        f"{operator}_backward(Tensor grad, {_MAPS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
        backward,
        lambda grad, *maps: tuple(empty_channels_last(x) for x in maps[:3]),
        lambda grad, *shapes, **_: _count_products(5, *shapes),
    )

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        maps = ctx.saved_tensors  # read once: checkpointing recomputes the tensors at each read
        grad_q, grad_k, grad_v = derive(grad, *maps, *ctx.options)
        grad_position, position = None, maps[3]
        if position is not None and ctx.needs_input_grad[3]:
            summed = _sum_heads(grad_k, len(position), ctx.options[0])
            grad_position = summed.neg().to(position.dtype)
        return grad_q, grad_k, grad_v, grad_position, *[None] * len(ctx.options)

    for name_of, formula, tensors in (
        (operator, differentiate, 4),
        (f"{operator}_backward", _differentiate_twice, 5),
    ):
        torch.library.register_autograd(
            f"{NAMESPACE}::{name_of}",
            formula,
            setup_context=partial(_save_inputs, tensors),
            lib=_library,
        )

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
        maps = (q, k, v) if position is None else (q, k, v, position)
        scale = (q.shape[1] // num_heads) ** -0.5 if scale is None else scale
        call = answer if requires_gradient(*maps) else infer
        out = call(q, k, v, position, num_heads, window_size, stride, dilation, scale)
        return cast(Tensor, out)

    return attend


def empty_channels_last(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty channels-last map of the shape of another map.

    The map is not a view: autograd forbids changes in place of an output that is a view.
    """
    return torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)


def _save_inputs(tensors: int, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the inputs of an operator for the backward pass, without its outputs."""
    ctx.save_for_backward(*inputs[:tensors])
    ctx.options = inputs[tensors:]


def _count_products(
    products: int, q: tuple[int, ...], k: tuple[int, ...], v: Any, position: Any, *options: Any
) -> int:
    """Count a multiplication and an addition for each channel of a query and each of K^2 keys."""
    B, C, H, W = q
    return 2 * products * B * C * H * W * int(options[1]) ** 2


def _sum_heads(x: Tensor, batch: int, num_heads: int) -> Tensor:
    """Sum maps (B, C, H, W) over heads, and over images if ``batch`` is 1: (B or 1, d, H, W).

    Images are summed before heads, in channels-last layout, so that contiguous rows are added.
    """
    x = x.permute(0, 2, 3, 1)
    x = x.sum_to_size(batch, *x.shape[1:]).unflatten(3, (num_heads, -1))
    return x.sum(3).permute(0, 3, 1, 2)


def _differentiate_twice(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """Differentiate the gradients of the reference, which makes K^2 copies of keys and values."""
    names = ("num_heads", "window_size", "stride", "dilation", "scale")
    options = dict(zip(names, ctx.options, strict=True))
    with torch.enable_grad():
        saved = [x if x is None else x.detach().requires_grad_() for x in ctx.saved_tensors]
        grad, *maps, position = cast(list[Tensor], saved)
        q, k, v = maps
        out = reference.sliding_window_attention(q, k, v, position, **options)
        first = torch.autograd.grad(out, maps, grad, create_graph=True)
    inputs = [grad, *maps, *([] if position is None else [position])]
    second = torch.autograd.grad(first, inputs, grads, allow_unused=True)
    return *second, *[None] * (len(ctx.needs_input_grad) - len(second))
