"""No gradient of a backbone comes from an operator that ``use_deterministic_algorithms`` refuses.

PyTorch refuses such operators on CUDA alone. Meta tensors run the operators of a GPU.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import convattn

NAMES = (*convattn.list_models("*_nano"), "acmix_deit_nano_conv", "acmix_pvt_nano_conv")

# listed by torch.use_deterministic_algorithms; names of gradients and of operators
REFUSED = re.compile(
    r"avg_?pool3d|adaptive_?(avg|max)_?pool|fractional_?max_?pool|max_?unpool|grid_?sampler"
    r"|upsample_?(linear|bilinear|bicubic|trilinear)|reflection_?pad|nll_?loss2d|ctc_?loss"
    r"|embedding_?bag|(?<!index_)put_|histc|bincount|median",
    re.IGNORECASE,
)


def gradients_of(y: Tensor) -> set[str]:
    """Return the names of all steps of the backward pass."""
    names, seen, todo = set(), set(), [y.grad_fn]
    while todo:
        step = todo.pop()
        if step is not None and step not in seen:
            seen.add(step)
            names.add(step.name())
            todo += [before for before, _ in step.next_functions]
    return names


class Names(TorchDispatchMode):
    """Records the operators of the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_has_a_deterministic_form(name, device, deterministic):
    model = convattn.create_model(name, device=device)
    # another size than that of the position embedding, so that it is interpolated
    y = model(torch.rand(2, 3, 48, 80, device=device))
    names = gradients_of(y)
    with Names() as operators:
        y.sum().backward()
    assert len(names) > 5
    assert len(operators.seen) > 5
    assert [n for n in names | operators.seen if REFUSED.search(n)] == []


def test_the_pattern_finds_refused_operators():
    x = torch.rand(1, 1, 4, 4, requires_grad=True)
    y = torch.nn.functional.adaptive_avg_pool2d(x, 3)
    y = torch.nn.functional.interpolate(y, (5, 7), mode="bicubic", antialias=True)
    names = gradients_of(y)
    assert len([n for n in names if REFUSED.search(n)]) == 2
    with Names() as operators:
        y.sum().backward()
    assert len([n for n in operators.seen if REFUSED.search(n)]) == 2
