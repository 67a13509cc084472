from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.bench.memory import peak_memory

N = 1_000_000  # floats of 4 bytes; some small allocations come in addition
NEAR = 1000


def test_the_result_is_not_counted():
    x = torch.rand(N)
    assert peak_memory(lambda: torch.neg(x)) < NEAR


def test_tensors_that_exist_together_are_counted_together():
    x = torch.rand(N)

    def two_in_between() -> Tensor:
        first = torch.neg(x)
        second = torch.neg(first)
        return torch.add(first, second)

    assert abs(peak_memory(two_in_between) - 2 * 4 * N) < NEAR


def test_freed_memory_is_not_counted_again():
    x = torch.rand(N)

    def one_after_another() -> Tensor:
        for _ in range(5):
            y = torch.neg(x)
            del y
        return x.sum()

    assert abs(peak_memory(one_after_another) - 4 * N) < NEAR


def test_memory_within_an_operator_is_counted():
    # Float64 convolutions copy the patches of an image into a matrix.
    x, weight = torch.rand(2, 64, 32, 32).double(), torch.rand(64, 64, 3, 3).double()
    patches = 64 * 9 * 32 * 32 * 8
    assert peak_memory(lambda: F.conv2d(x, weight, padding=1)) >= patches


def test_the_backward_pass_is_counted_and_returned_gradients_are_not():
    x = torch.rand(N, requires_grad=True)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(x.exp().sum(), x)

    assert 4 * N - NEAR < peak_memory(both) < 2 * 4 * N + NEAR


def test_freeing_earlier_memory_does_not_reduce_the_peak():
    held = [torch.rand(N)]

    def free() -> Tensor:
        held.clear()
        return torch.neg(torch.rand(N)).sum()

    assert abs(peak_memory(free) - 2 * 4 * N) < NEAR
