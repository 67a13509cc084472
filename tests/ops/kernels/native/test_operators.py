"""The kernels as operators of PyTorch: schema, shapes, operations counted, gradients refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from convattn import ops
from convattn.ops.kernels.native import heads, library, rows

pytestmark = pytest.mark.skipif(not library.available(), reason="no C compiler")

B, C, H, W, T, SLOTS, HEADS, WINDOW = 2, 8, 6, 9, 5, 4, 2, 3


def _tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for shape in shapes]


def _maps(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    maps = _tensors(*[(B, C, H, W)] * 3, dtype=dtype)
    return [x.contiguous(memory_format=torch.channels_last) for x in maps]


def _mask() -> Tensor:
    return heads.lanes(torch.randn(1, HEADS, WINDOW**2, WINDOW**2))


# The arguments of each operator without a gradient formula.
OPERATORS: dict[str, Callable[[torch.dtype], tuple[Any, ...]]] = {
    "layer_norm": lambda t: (*_tensors((T, C), (C,), (C,), dtype=t), 1e-6),
    "add_layer_norm": lambda t: (*_tensors((T, C), (T, C), (C,), (C,), dtype=t), 1e-6),
    "directions": lambda t: (*_tensors((B, T, C), dtype=t), 1e-6, 2.0),
    "similarities_": lambda t: (*_tensors((B, T, SLOTS), (B, T, C), dtype=t), 1e-6),
    "scale_rows_": lambda t: (*_tensors((B, T, C), dtype=t), torch.rand(B, T)),
    "attend_tokens": lambda t: (*_tensors((B, T, 3 * C), dtype=t), HEADS),
    "attend_windows": lambda t: (*_maps(t), _mask(), HEADS, WINDOW, 0.5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_keep_the_contract_of_pytorch(name, dtype):
    torch.library.opcheck(getattr(torch.ops.convattn, name), OPERATORS[name](dtype))


def _faces() -> dict[str, Callable[..., Any]]:
    """The functions that call the operators; options as in `OPERATORS`."""
    return {
        "layer_norm": lambda x, w, b: rows.layer_norm(x, w, b, 1e-6),
        "add_layer_norm": lambda x, y, w, b: rows.add_layer_norm(x, y, w, b, 1e-6),
        "directions": lambda x: rows.directions(x, 1e-6, 2.0),
        "similarities_": lambda x, u: rows.similarities_(x, u, 1e-6),
        "scale_rows_": rows.scale_,
        "attend_tokens": lambda qkv: heads.attend_tokens(qkv, HEADS),
        "attend_windows": lambda *t: heads.attend_windows(
            *t, num_heads=HEADS, window_size=WINDOW, scale=0.5
        ),
    }


@pytest.mark.parametrize("name", OPERATORS)
def test_a_gradient_that_has_no_formula_is_an_error(name):
    tensors = [x for x in OPERATORS[name](torch.float32) if isinstance(x, Tensor)]
    face = _faces()[name]
    for x in tensors:
        x.requires_grad_()
        with pytest.raises(RuntimeError, match=f"{name!r} has no gradient: .*no_grad"):
            face(*tensors)
        with torch.no_grad():
            face(*tensors)
        x.requires_grad_(False)


@pytest.mark.parametrize("name", OPERATORS)
def test_other_types_are_an_error(name):
    with pytest.raises(TypeError, match=r"float32 or bfloat16, one of them, got torch.float64"):
        getattr(torch.ops.convattn, name)(*OPERATORS[name](torch.float64))


@pytest.mark.parametrize("name", ["similarities_", "scale_rows_"])
def test_a_change_in_place_is_seen_by_autograd(name):
    arguments = OPERATORS[name](torch.float32)
    x = torch.ones_like(arguments[0], requires_grad=True)
    y = x * arguments[0]
    with torch.no_grad():
        getattr(torch.ops.convattn, name)(*arguments)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["similarities_", "scale_rows_"])
def test_rows_that_lie_apart_cannot_change_in_place(name):
    x, *others = OPERATORS[name](torch.float32)
    x = torch.stack([x, x], -1)[..., 0]
    with pytest.raises(ValueError, match="rows must be contiguous"):
        getattr(torch.ops.convattn, name)(x, *others)


def test_maps_that_windows_do_not_fill_are_an_error():
    q = _maps()[0]
    with pytest.raises(ValueError, match="which window_size=4 divides"):
        heads.attend_windows(q, q, q, None, num_heads=2, window_size=4, scale=1.0)


def _flops(function: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def test_attention_counts_two_products():
    assert _flops(lambda: heads.attend_tokens(torch.randn(B, T, 3 * C), HEADS)) == 4 * B * T * T * C
    windows = _faces()["attend_windows"]
    assert _flops(lambda: windows(*_maps(), None)) == 4 * B * C * H * W * WINDOW**2


@pytest.mark.parametrize("name", ["layer_norm", "add_layer_norm", "directions", "scale_rows_"])
def test_other_kernels_count_no_product(name):
    arguments = OPERATORS[name](torch.float32)
    assert _flops(lambda: getattr(torch.ops.convattn, name)(*arguments)) == 0


@pytest.mark.parametrize("backend", ["native", "strips"])
@pytest.mark.parametrize("stride", [1, 2])
def test_sliding_windows_count_two_products_and_five_backward(backend, stride):
    maps = [x.requires_grad_() for x in _maps()]
    product = 2 * B * C * (H // stride) * -(-W // stride) * WINDOW**2

    def attend() -> Tensor:
        return ops.sliding_window_attention(
            *maps, num_heads=HEADS, window_size=WINDOW, stride=stride, backend=backend
        )

    assert _flops(attend) == 2 * product
    y = attend().sum()
    assert _flops(y.backward) == 5 * product
