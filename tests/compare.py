"""Values and gradients of two computations of the same formula, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.tolerances import TOLERANCE


def values_and_gradients(
    function: Callable[..., Tensor], tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the output, and the gradient of a fixed weighted sum of it by each tensor."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format) for t in tensors]
    output = function(*(leaf.requires_grad_() for leaf in leaves))
    generator = torch.Generator().manual_seed(1)
    probe = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
    gradients = torch.autograd.grad((output * probe).sum(), leaves, materialize_grads=True)
    return (output.detach(), *gradients)


def assert_same(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], tensors: Sequence[Tensor]
) -> None:
    """Compare two functions of the same tensors, values and all gradients."""
    assert_close(
        values_and_gradients(ours, tensors),
        values_and_gradients(theirs, tensors),
        tensors[0].dtype,
    )


def assert_close(actual: Any, expected: Any, dtype: torch.dtype) -> None:
    """Compare tensors, or sequences of them, with the tolerance of ``dtype``."""
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance["rtol"], atol=tolerance["atol"])
