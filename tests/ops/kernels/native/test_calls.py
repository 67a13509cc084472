"""Sliding windows in C: what may be passed, what is refused, what a call costs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from convattn import ops
from convattn.bench.memory import peak_memory
from convattn.ops import tuned
from convattn.ops.kernels.native import library, sliding
from tests.calls import Calls
from tests.compare import assert_close, assert_same, values_and_gradients
from tests.memory import saved_for_backward

pytestmark = pytest.mark.skipif(not library.available(), reason="no C compiler")

SINGLE, HALF = torch.float32, torch.bfloat16
ANSWER, DERIVE = "sliding_window_native", "sliding_window_native_backward"


def _maps(*dtypes: torch.dtype, shape: tuple[int, ...] = (2, 8, 11, 20)) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for dtype in dtypes or (SINGLE,) * 3]


def _attend(backend: str = "native", **options: Any) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, position: Tensor | None = None) -> Tensor:
        return ops.sliding_window_attention(
            q, k, v, num_heads=2, position=position, backend=backend, **options
        )

    return attend


@pytest.mark.parametrize("types", [(SINGLE, HALF, SINGLE), (HALF, SINGLE, HALF)])
def test_maps_may_differ_in_type(types):
    tensors = [*_maps(*types), torch.randn(1, 4, 11, 20, dtype=torch.float64)]
    y, *gradients = values_and_gradients(_attend(), tensors)
    assert y.dtype == types[0]
    assert [g.dtype for g in gradients] == [*types, torch.float64]
    expected = values_and_gradients(_attend("reference"), [t.float() for t in tensors])
    for actual, single in zip((y, *gradients), expected, strict=True):
        assert_close(actual.float(), single, HALF)


@pytest.mark.parametrize("types", [(torch.float64, SINGLE), (torch.float16, SINGLE)])
def test_the_type_of_the_queries_decides(types):
    q, k, v = _maps(*types, types[1], shape=(1, 4, 20, 20))
    with Calls() as calls:
        y = _attend("auto")(q, k, v)
    assert y.dtype == q.dtype
    assert not calls.count[ANSWER]
    with pytest.raises(ValueError, match=r"computes float32 and bfloat16, got torch.float\d+"):
        _attend()(q, k, v)


@pytest.mark.parametrize(("window", "dilation"), [(31, 1), (21, 2), (11, 4)])
def test_the_widest_windows_match_the_reference(window, dilation):
    options = {"window_size": window, "dilation": dilation}
    assert_same(_attend(**options), _attend("reference", **options), _maps(shape=(1, 4, 19, 23)))


@pytest.mark.parametrize(("window", "dilation"), [(33, 1), (7, 7), (3, 10**6)])
def test_wider_windows_are_refused_and_auto_takes_others(window, dilation):
    message = f"got window_size={window}, dilation={dilation}; use backend='auto'"
    q, k, v = _maps(shape=(1, 2, 3, 4))
    with pytest.raises(ValueError, match=message):
        _attend(window_size=window, dilation=dilation)(q, k, v)
    with Calls() as calls:
        _attend("auto", window_size=window, dilation=dilation)(q, k, v)
    assert not calls.count[ANSWER]


@pytest.mark.parametrize("stride", [23, 10**9])
def test_a_stride_as_long_as_the_map_answers_its_first_pixel(stride):
    tensors = _maps(shape=(1, 4, 19, 23))
    assert_same(_attend(stride=stride), _attend("reference", stride=stride), tensors)


def test_auto_takes_the_kernels_forward_and_backward():
    q, k, v = (x.requires_grad_() for x in _maps())
    with Calls() as calls:
        _attend("auto")(q, k, v).sum().backward()
    assert calls.count[ANSWER] == calls.count[DERIVE] == 1


def test_auto_takes_others_under_function_transforms():
    q, k, v = _maps(shape=(1, 4, 9, 16))
    slope, expected = (
        torch.func.grad(lambda x, b=b: _attend(b)(x, k, v).square().sum())(q)
        for b in ("auto", "reference")
    )
    assert_close(slope, expected, SINGLE)


def _expanded(x: Tensor) -> Tensor:
    return x[:1, :, :1, :1].expand_as(x)


def _negated(x: Tensor) -> Tensor:
    return torch.complex(x, -x).conj().imag  # a view that negates what lies in memory


def _cropped(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (3, 2, 1, 4))[:, :, 1:-4, 3:-2]


@pytest.mark.parametrize("layout", [_expanded, _negated, _cropped, lambda x: x.flip(0).mT.mT])
@pytest.mark.parametrize("dtype", [SINGLE, HALF])
def test_views_are_read_as_they_are(layout, dtype):
    if layout is _negated and dtype == HALF:
        pytest.skip("no complex numbers of that type")
    q, k, v, gradient = (layout(x) for x in _maps(*[dtype] * 4))
    position = layout(torch.randn(1, 4, 11, 20, dtype=dtype))
    tensors = [q, k, v, position]
    plain = [x.resolve_neg().contiguous() for x in tensors]
    results = []
    for maps, by in ((tensors, gradient), (plain, gradient.resolve_neg().contiguous())):
        leaves = [x.detach().requires_grad_() for x in maps]
        y = _attend()(*leaves)
        results.append([y, *torch.autograd.grad(y, leaves, by)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("size", [1e4, 1e20, 3e37])
def test_large_logits_choose_the_largest(size):
    q = torch.ones(1, 2, 5, 9)
    k, v = torch.rand(1, 2, 5, 9) * size, torch.randn(1, 2, 5, 9)
    assert_same(_attend(window_size=3), _attend("reference", window_size=3), [q, k, v])


def test_equal_logits_give_the_mean():
    q, k, v = _maps(shape=(1, 2, 5, 9))
    y = _attend(window_size=3)(q, torch.ones_like(k), v)
    padded = torch.nn.functional.pad(v, (1, 1, 1, 1), mode="reflect")
    assert_close(y, torch.nn.functional.avg_pool2d(padded, 3, stride=1), SINGLE)


def test_a_weight_that_vanishes_counts_for_nothing_however_large_the_value():
    q, k, v = torch.ones(1, 1, 1, 3), torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3)
    k[..., 0], v[..., 0] = -200.0, 1e38
    y = ops.sliding_window_attention(q, k, v, num_heads=1, window_size=3, backend="native")
    assert torch.equal(y, torch.zeros_like(y))


def test_memory_that_nobody_wrote_is_not_read():
    maps = _maps(shape=(2, 6, 7, 19))
    expected = values_and_gradients(_attend(stride=2), maps)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what is allocated with what is no number
    try:
        actual = values_and_gradients(_attend(stride=2), maps)
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_the_maps_stay_as_they_were():
    maps = [x.requires_grad_() for x in _maps()]
    before = copy.deepcopy(maps)
    _attend()(*maps).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(maps, before, strict=True))


def test_several_threads_may_call_at_once():
    maps = [_maps() for _ in range(8)]
    expected = [values_and_gradients(_attend(), tensors) for tensors in maps]
    with ThreadPoolExecutor(4) as pool:
        actual = list(pool.map(lambda tensors: values_and_gradients(_attend(), tensors), maps))
    assert_close(actual, expected, torch.float64)  # float32 to the bit


def test_inference_mode_and_autocast_leave_the_type_of_the_queries():
    q, k, v = _maps()
    expected = _attend()(q, k, v)
    with torch.inference_mode(), torch.autocast("cpu", HALF):
        y = _attend("auto")(q, k, v)
    assert torch.equal(y, expected)


class TestCost:
    shape, heads = (8, 32, 56, 56), 2

    def attend(self, backend: str, stride: int, *, backward: bool) -> Callable[[], Any]:
        maps = [x.requires_grad_() for x in _maps(shape=self.shape)]

        def attend() -> Any:
            with torch.set_grad_enabled(backward):
                out = _attend(backend, stride=stride)(*maps)
            return torch.autograd.grad(out.sum(), maps) if backward else out

        return attend

    @pytest.mark.slow
    @pytest.mark.parametrize("backward", [False, True])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_memory_beyond_what_is_returned_is_a_small_part_of_the_references(
        self, stride, backward
    ):
        ours, theirs = (
            peak_memory(self.attend(backend, stride, backward=backward))
            for backend in ("native", "reference")
        )
        assert ours < theirs / 20

    @pytest.mark.parametrize("stride", [1, 2])
    def test_nothing_is_kept_for_backward_but_the_maps(self, stride):
        maps = [x.requires_grad_() for x in _maps(shape=self.shape)]
        kept = saved_for_backward(lambda: _attend(stride=stride)(*maps))
        assert kept <= 3 * maps[0].nbytes

    @pytest.mark.parametrize("backward", [False, True])
    def test_the_workspace_of_a_thread_fits_in_a_cache(self, monkeypatch, backward):
        q, k, v = _maps(shape=(8, 64, 56, 56))
        arguments = (q, k, v, None, 4, 7, 1, 1, 0.25)
        sizes = []
        for threads in (1, 2, 8):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            sizes.append(_workspace(backward, arguments))
        assert 0 < sizes[0] <= 4 * (tuned.NATIVE_WORKSPACE[backward] + 16)
        assert sizes[2] < 8.1 * sizes[0]

    def test_threads_without_a_task_have_no_workspace(self, monkeypatch):
        q, k, v = _maps(shape=(1, 32, 56, 56))
        arguments = (q, k, v, None, 2, 7, 1, 1, 0.25)
        sizes = []
        for threads in (2, 64):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            sizes.append(_workspace(True, arguments))
        assert sizes[0] == sizes[1]


def _workspace(backward: bool, arguments: tuple[Any, ...]) -> int:
    """Return the largest one-dimensional tensor in bytes that a kernel allocates."""
    function: Callable[..., Any] = sliding.native_backward if backward else sliding.native_forward
    largest = 0

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.dim() == 1:
                largest = max(largest, out.nbytes)
            return out

    with Allocations():
        function(*([torch.randn_like(arguments[0])] if backward else []), *arguments)
    return largest
