"""Which path of an operator runs: what the caller says, else the override, else its table of rules.

A table is a tuple of (path, when it fits, the measurement that says so); the first that fits is
taken, and the last fits always.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._device import DeviceContext

from convattn.checks import check_choice
from convattn.ops import dispatch

# Every path that a caller may name. An operator that lacks the overriding one keeps its own rule,
# but calls no kernel by address: `unwatched`.
PATHS = (
    "reference",
    "native",
    "strips",
    "tiled",
    "dense",
    "folded",
    "grouped",
    "taps",
    "sdpa",
    "shared",
    "shifted",
    "triton",
)

# Older versions (2.14 is right) answer True to `is_exporting()` in all that `torch.compile` traces.
_COMPILED_LOOKS_EXPORTED = torch.__version__ < "2.14"


@dataclass  # not frozen, which would take 0.8 of 3 us for each operator that is called
class Case:
    """What the choice of a path may depend on.

    Sizes may be symbols while a model is compiled: a rule that compares them costs one graph for
    each side, so that a table may compare them with few constants, and never with one another.
    """

    device: str
    dtype: torch.dtype
    height: int
    width: int
    stride: int = 1
    window: int = 1
    dilation: int = 1
    grad: bool = False  # whether a gradient will be asked for
    exporting: bool = False  # whether the operators are written down for another runtime
    transformed: bool = False  # whether PyTorch's function transforms look into the operators
    plain: bool = True  # whether the tensors are PyTorch's own, on one device


Rule = tuple[str, Callable[[Case], bool], str]


def describe(
    *tensors: Tensor,
    stride: int = 1,
    window: int = 1,
    dilation: int = 1,
    dtype: torch.dtype | None = None,
) -> Case:
    """Return the case of an operator on the map ``tensors[0]`` and other tensors.

    Args:
        tensors: the map, whose last two dimensions are its height and width, then all else that a
            gradient may be wanted for.
        stride: of the operator.
        window: of the operator.
        dilation: of the operator.
        dtype: of the result; None for that of the map.
    """
    x = tensors[0]
    return Case(
        device=x.device.type,
        dtype=x.dtype if dtype is None else dtype,
        height=x.shape[-2],
        width=x.shape[-1],
        stride=stride,
        window=window,
        dilation=dilation,
        grad=torch.is_grad_enabled() and any(t.requires_grad for t in tensors),
        exporting=exporting(),
        transformed=transformed(),
        plain=_plain(tensors),
    )


def _plain(tensors: Sequence[Tensor]) -> bool:
    """Whether such tensors lie in memory as they say: what derives from them may mean all else."""
    device = tensors[0].device
    return all(type(t) in (Tensor, Parameter) and t.device == device for t in tensors)


def exporting() -> bool:
    """Whether the operators are written down for another runtime, which knows PyTorch's own.

    ``torch.onnx.export`` does the one or the other.
    """
    return torch.jit.is_tracing() or is_torch_export()  # type: ignore[attr-defined]


def is_torch_export() -> bool:
    """Return whether ``torch.export`` traces the operators."""
    if _COMPILED_LOOKS_EXPORTED:
        return torch.compiler._is_exporting_flag
    return torch.compiler.is_exporting()


def transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation looks into the operators."""
    return (
        torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    )


def unwatched(case: Case) -> bool:
    """Whether nobody sees by which kernel a CPU computes, so that it need not be an operator.

    Nobody differentiates, exports, compiles, transforms or counts operators, autocast chooses no
    type, and `use_backend` asks for no path but "native". A default device is a mode that looks at
    functions, and keeps the kernels out unless it is the CPU.
    """
    return (
        case.device == "cpu"
        and not case.grad
        and not case.exporting
        and case.plain
        and not torch.compiler.is_compiling()  # asked before what it would guard on
        and dispatch._override.get() in (None, "native")
        # whoever watches operators or functions knows PyTorch's
        and torch._C._len_torch_dispatch_stack() == 0
        and not _functions_watched()
        and not case.transformed
        and not torch.is_autocast_enabled("cpu")
    )


def _functions_watched() -> bool:
    count = torch._C._len_torch_function_stack()
    modes = (torch._C._get_function_stack_at(i) for i in range(count))
    return count > 0 and any(
        type(mode) is not DeviceContext or mode.device.type != "cpu" for mode in modes
    )


def derivable() -> AbstractContextManager[None]:
    """Let sdpa multiply plainly where a transform looks into it: its kernels lack derivatives.

    They have no forward mode, and no derivative of their gradient.
    """
    return sdpa_kernel(SDPBackend.MATH) if transformed() else nullcontext()


def autocasts(device: str) -> bool:
    """Whether autocast chooses the types on such a device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def no_autocast(device: str) -> AbstractContextManager[None]:
    """Leave the types as they are, where autocast would choose others."""
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()


def choose(rules: Sequence[Rule], case: Case) -> str:
    """Return the path of the first rule that fits."""
    for path, fits, _ in rules:
        if fits(case):
            return path
    raise AssertionError(f"the last rule fits always, but none fits {case}")


def resolve(backend: str, choices: Collection[str]) -> str:
    """Return the path to take: ``backend``, or for "auto" the override where it is a choice.

    Args:
        backend: what the caller asked for.
        choices: the paths of the operator.

    Returns:
        One of ``choices``, or "auto": the operator's own rule decides.

    Raises:
        ValueError: ``backend`` is neither "auto" nor one of ``choices``.
    """
    check_choice("backend", backend, ("auto", *choices))
    override = dispatch._override.get()
    if backend == "auto" and override is not None and override in choices:
        return override
    return backend
