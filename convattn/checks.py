"""Argument checks shared by every public entry: each message names the value and the fix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.fx.proxy import TraceError

from convattn.names import check_choice as check_choice


def check_tensor(name: str, value: Tensor) -> None:
    """Raise unless ``value`` is a tensor."""
    if isinstance(value, Proxy):
        raise TraceError(
            f"torch.fx cannot trace what looks at the size of {name}; trace a network that holds "
            "the layer; or make the module that calls it one node: tracer_kwargs={'leaf_modules': "
            "[...]} in torchvision, is_leaf_module() of a torch.fx.Tracer; or torch.fx.wrap the "
            "function, in the file that calls it"
        )
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def check_map(x: Tensor, name: str = "x", channels: int | None = None) -> None:
    """Raise unless ``x`` is a floating-point map (B, C, H, W), with ``channels`` if given."""
    check_tensor(name, x)
    if x.dim() != 4:
        raise ValueError(f"{name} must have shape (B, C, H, W), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}; convert it with .float()")
    if min(x.shape[1:]) < 1:
        raise ValueError(
            f"{name} must have at least one channel and one pixel, got {tuple(x.shape)}"
        )
    if channels is not None and x.shape[1] != channels:
        raise ValueError(
            f"{name} must have {channels} channels in (B, C, H, W), got {tuple(x.shape)}"
        )


def check_positive(name: str, value: int) -> None:
    """Raise unless ``value`` is an integer of at least 1."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined]  # the sizes of a map are tensors
        return
    # no unions of types in `isinstance`: PyTorch 2.9 does not compile them
    integer = isinstance(value, (int, torch.SymInt)) or hasattr(type(value), "__index__")  # NumPy's
    if not integer or isinstance(value, (bool, Tensor)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_odd(name: str, value: int) -> None:
    """Raise unless ``value`` is a positive odd integer, so that a window has a centre."""
    check_positive(name, value)
    if value % 2 == 0:
        raise ValueError(f"{name} must be odd, got {value}; use {value - 1} or {value + 1}")


def check_divisible(name: str, value: int, divisor_name: str, divisor: int) -> None:
    """Raise unless ``divisor`` divides ``value``."""
    check_positive(name, value)
    check_positive(divisor_name, divisor)
    if value % divisor:
        fits = [d for d in range(1, value + 1) if value % d == 0]
        nearest = min(fits, key=lambda d: (abs(d - divisor), d))
        raise ValueError(
            f"{name} must be a multiple of {divisor_name}, got {name}={value}, "
            f"{divisor_name}={divisor}; the nearest {divisor_name} that fits is {nearest}"
        )


def check_rate(name: str, value: float) -> None:
    """Raise unless ``value`` is the probability of dropping something: from 0 to below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, got {value}")
