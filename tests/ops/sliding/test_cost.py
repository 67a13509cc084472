"""What sliding windows strip by strip cost: counted, never timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from convattn import ops
from convattn.bench.memory import peak_memory
from convattn.ops.sliding.strips import strips_backward, strips_forward
from tests.calls import Calls
from tests.memory import saved_for_backward

SHAPE, HEADS, WINDOW = (8, 32, 56, 56), 2, 7
MAP_BYTES = 8 * 32 * 56 * 56 * 4


def _maps() -> list[Tensor]:
    return [torch.randn(SHAPE, requires_grad=True) for _ in range(3)]


def _attend(backend: str, stride: int, *, backward: bool) -> Callable[[], Any]:
    maps = _maps()

    def attend() -> Any:
        with torch.set_grad_enabled(backward):
            out = ops.sliding_window_attention(
                *maps, num_heads=HEADS, window_size=WINDOW, stride=stride, backend=backend
            )
        return torch.autograd.grad(out.sum(), maps) if backward else out

    return attend


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_memory_beyond_what_is_returned_is_a_small_part_of_the_references(stride, backward):
    ours, theirs = (
        peak_memory(_attend(backend, stride, backward=backward))
        for backend in ("strips", "reference")
    )
    # with a stride the reference copies a quarter as much, but the gradients of keys stay whole
    assert ours < theirs / (15 if backward and stride == 2 else 20)


@pytest.mark.parametrize("stride", [1, 2])
def test_nothing_is_kept_for_backward_but_the_maps(stride):
    maps = _maps()
    kept = saved_for_backward(
        lambda: ops.sliding_window_attention(
            *maps, num_heads=HEADS, window_size=WINDOW, stride=stride, backend="strips"
        )
    )
    assert kept <= 3 * MAP_BYTES


@pytest.mark.parametrize("stride", [1, 2])
def test_products_are_a_few_times_those_asked_for(stride):
    q, k, v = (x.detach()[:1] for x in _maps())
    q = q[:, :, ::stride, ::stride]
    options = {"window_size": WINDOW, "stride": stride, "dilation": 1, "num_heads": HEADS}
    answered = (56 // stride) ** 2
    asked = 2 * WINDOW**2 * SHAPE[1] * answered  # of a query and a key, a multiply-add each
    with FlopCounterMode(display=False) as forward:
        out = strips_forward(q, k, v, None, **options, scale=0.25)
    with FlopCounterMode(display=False) as backward:
        strips_backward(out, q, k, v, None, **options, scale=0.25)
    assert 2 * asked < forward.get_total_flops() < 3 * 2 * asked
    # the logits again, then by values, by weights, by queries and by keys; in larger tiles
    assert 5 * asked < backward.get_total_flops() < 4 * 5 * asked


def test_a_strip_takes_two_products_forward_and_four_backward():
    q, k, v = (x.detach() for x in _maps())
    position = torch.randn(1, SHAPE[1] // HEADS, *SHAPE[2:])
    options = {"window_size": WINDOW, "stride": 1, "dilation": 1, "num_heads": HEADS}
    with Calls() as forward:
        out = strips_forward(q, k, v, position, **options, scale=0.25)
    with Calls() as backward:
        strips_backward(out, q, k, v, position, **options, scale=0.25)
    assert 0 < forward.count["baddbmm"] == forward.count["bmm"]
    # those by keys and by values are one product
    assert backward.count["bmm"] == 3 * backward.count["baddbmm"] > 0
    # positions that a batch shares are subtracted while keys are copied
    assert not forward.count["sub_"]


@pytest.mark.parametrize(("size", "part"), [(14, 8 / 14), (18, 8 / 18), (7, 1)])
def test_bands_of_a_dense_map_take_the_keys_of_the_rows_that_they_see(size, part):
    counts = []
    for backend in ("bands", "dense"):
        q, k, v = (torch.randn(1, 8, size, size) for _ in range(3))
        # The fused kernels that PyTorch chooses between on a processor are not counted alike.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
            ops.sliding_window_attention(q, k, v, num_heads=2, window_size=WINDOW, backend=backend)
        counts.append(counted.get_total_flops())
    assert 0 < counts[0] <= part * counts[1]


def test_bands_are_taken_where_they_see_a_part_of_a_small_map():
    def taken(size: int, *, grad: bool = False) -> str:
        x = torch.randn(1, 8, size, size, dtype=torch.float64, requires_grad=grad)
        return ops.explain(
            ops.sliding_window_attention, x, x, x, num_heads=2, window_size=WINDOW
        ).path

    assert [taken(size) for size in (7, 12, 14, 18)] == ["dense", "dense", "bands", "bands"]
    assert taken(14, grad=True) == "dense"
