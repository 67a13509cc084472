"""The conditions of the kernels in C that are the same for every operator."""

from __future__ import annotations

from convattn.ops.dispatch import Call
from convattn.ops.kernels.native.library import DTYPES, why_not_available


def refuses(call: Call, *, refuses_gradients: bool = True) -> str | None:
    """Return why a kernel in C cannot compute a call, or None if it can.

    Args:
        call: the arguments of the operator.
        refuses_gradients: whether the kernel has no backward pass.
    """
    return refuses_tensors(call, refuses_gradients=refuses_gradients) or why_not_available()


def refuses_tensors(call: Call, *, refuses_gradients: bool = True) -> str | None:
    """Return why a path for plain tensors on the CPU cannot compute a call, or None if it can.

    Args:
        call: the arguments of the operator.
        refuses_gradients: whether the path has no backward pass.
    """
    if not call.on_cpu:
        return f"it computes tensors on the CPU, got {call.devices}"
    if refuses_gradients and call.grad:
        return "it has no gradient, and one is required"
    if call.dtype not in DTYPES:
        return f"it computes float32 and bfloat16, got {call.dtype}"
    if not call.plain:
        return "it computes tensors of PyTorch's own classes, not of subclasses"
    if call.exporting:
        return "an exported program has PyTorch's operators only"
    if call.transformed:
        return "it has no rule for torch.func or forward-mode differentiation"
    if call.autocast:
        return "autocast is enabled, and applies to PyTorch's operators only"
    return None
