"""Sliding windows in C: the list of properties, and every geometry, against the formula."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convattn import ops
from convattn.ops import tuned
from convattn.ops.kernels.native import library
from tests.compare import assert_close, assert_same, values_and_gradients
from tests.ops.properties import SHAPES
from tests.ops.sliding.test_attention import SlidingWindow

pytestmark = pytest.mark.skipif(not library.available(), reason="no C compiler")


class Native(SlidingWindow):
    """The kernels compute float32 and bfloat16 alone.

    Layouts and the other images of a batch must not change a bit of float32: what the list compares
    in float64 keeps the tolerance of float64.
    """

    backend = "native"

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        return super().inputs(shape, torch.float32 if dtype == torch.float64 else dtype)

    def test_gradients_match_finite_differences(self):
        with pytest.raises(ValueError, match="float32 and bfloat16, got torch"):
            self.fast(*super().inputs((2, 4, 3, 2), torch.float64))  # that differences need

    @pytest.mark.parametrize("shape", SHAPES)
    def test_matches_the_reference(self, shape):
        assert_same(self.fast, self.reference, self.inputs(shape, torch.float32))

    def test_half_precision_follows_float32(self):
        super().test_half_precision_follows_float32(torch.bfloat16)

    def test_half_precision_bears_large_values(self):
        super().test_half_precision_bears_large_values(torch.bfloat16)

    def test_function_transforms_have_every_derivative(self):
        with pytest.raises(ValueError, match=r"no rule for torch\.func .*use backend='auto'"):
            super().test_function_transforms_have_every_derivative()

    @pytest.mark.slow
    def test_the_operators_are_what_pytorch_asks_of_operators(self):
        q, k, v, position = (t.requires_grad_() for t in self.inputs((2, 8, 9, 6), torch.float32))
        options = {"window_size": 7, "stride": 1, "dilation": 1} | self.options()
        q = q[:, :, :: options["stride"], :: options["stride"]].detach().requires_grad_()
        arguments = (q, k, v, position, 2, *options.values(), 0.5)
        operators = torch.ops.convattn
        torch.library.opcheck(operators.sliding_window_native.default, arguments)
        derivative = operators.sliding_window_native_backward.default
        torch.library.opcheck(derivative, (torch.randn_like(q), *arguments))
        detached = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
        torch.library.opcheck(operators.sliding_window_native.no_gradient, tuple(detached))

    def test_gradients_of_gradients_are_those_of_the_reference(self):
        def slopes(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def slope(*tensors: Tensor) -> Tensor:
                y = function(*tensors).square().sum()
                gradients = torch.autograd.grad(y, tensors, create_graph=True)
                return sum((g.square().sum() for g in gradients), torch.zeros(()))

            return slope

        tensors = [t / 3 for t in self.inputs((2, 8, 6, 5), torch.float32)]
        assert_same(slopes(self.fast), slopes(self.reference), tensors)


class TestNative(Native):
    pass


class TestNativeWithStride(Native):
    def options(self) -> dict[str, Any]:
        return {"window_size": 3, "stride": 2}


class TestNativeWithDilation(Native):
    test_compiles_whole = None  # one operator, as without

    def options(self) -> dict[str, Any]:
        return {"window_size": 5, "stride": 3, "dilation": 2}


X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of other processors")
BUILDS = [
    pytest.param("", id="as used"),
    pytest.param("gcc -march=x86-64-v3", marks=[X86, pytest.mark.slow]),  # vectors of 8
    pytest.param("gcc -march=x86-64", marks=[X86, pytest.mark.slow]),
    pytest.param("clang", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=BUILDS)
def build(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile for another processor, or with another compiler."""
    command = request.param
    if command and not shutil.which(command.split()[0]):
        pytest.skip(f"no {command.split()[0]}")
    with pytest.MonkeyPatch.context() as patch:
        if command:
            patch.setenv("CC", command)
            patch.setattr(library, "installed", library.Library())
        library.kernels()
        yield


GEOMETRY = {
    "size": st.tuples(st.integers(1, 40), st.integers(1, 40)),
    "window_size": st.sampled_from([1, 3, 5, 7, 9, 11]),
    "stride": st.integers(1, 4),
    "dilation": st.integers(1, 4),
}


def _attend(backend: str, **options: Any) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, position: Tensor | None = None) -> Tensor:
        return ops.sliding_window_attention(q, k, v, position=position, backend=backend, **options)

    return attend


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    heads=st.integers(1, 3),
    width=st.sampled_from([1, 3, 8, 16, 20, 33]),
    batch=st.integers(1, 3),
    position=st.sampled_from(["none", "shared", "its own"]),
    **GEOMETRY,
)
def test_every_geometry_matches_the_reference(
    dtype, heads, width, batch, position, size, **options
):
    tensors = [torch.randn(batch, heads * width, *size).to(dtype) for _ in range(3)]
    if position != "none":
        images = batch if position == "its own" else 1
        tensors.append(torch.randn(images, width, *size).to(dtype))
    options["num_heads"] = heads
    ours = values_and_gradients(_attend("native", **options), tensors)
    theirs = values_and_gradients(_attend("reference", **options), [t.float() for t in tensors])
    assert all(t.dtype == dtype for t in ours)
    assert_close([t.float() for t in ours], list(theirs), dtype)


def _no_numbers() -> dict[str, Tensor]:
    # the second is one that the bits of an exponent, added to it, make a number of
    odd = torch.tensor(0x7FC00001, dtype=torch.int32).view(torch.float32)
    values = {str(x): torch.tensor(x) for x in (torch.nan, torch.inf, -torch.inf)}
    return values | {"nan with a payload": odd}


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("name", _no_numbers())
@given(
    which=st.integers(0, 3),
    channels=st.sampled_from([1, 2]),
    pixel=st.tuples(st.integers(0, 39), st.integers(0, 39)),
    **GEOMETRY,
)
def test_what_is_no_number_stays_where_it_is_shown(name, which, channels, pixel, size, **options):
    value = _no_numbers()[name]
    tensors = [torch.randn(1, c, *size) for c in (4, 4, 4, 2)]
    if which == 3 and value.isinf():  # p_i - p_j of the formula is none, p_j of the kernels is inf
        which = 1
    place = [n % length for n, length in zip(pixel, size, strict=True)]
    tensors[which][0, :channels, place[0], place[1]] = value
    options["num_heads"] = 2
    ours, theirs = (
        values_and_gradients(_attend(backend, **options), tensors)
        for backend in ("native", "reference")
    )
    for x, expected in zip(ours, theirs, strict=True):
        numbers = expected.isfinite()
        assert torch.equal(x.isfinite(), numbers)
        assert_close(x[numbers], expected[numbers], torch.float32)


@given(batch=st.integers(1, 3), threads=st.integers(1, 3), small=st.booleans(), **GEOMETRY)
def test_bands_and_threads_change_no_bit(batch, threads, small, size, **options):
    tensors = [torch.randn(batch, 6, *size) for _ in range(3)]
    options["num_heads"] = 2
    whole = values_and_gradients(_attend("native", **options), tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        if small:  # forward alone: a key's gradient is added up band by band
            patch.setattr(tuned, "NATIVE_WORKSPACE", (1, tuned.NATIVE_WORKSPACE[1]))
        parts = values_and_gradients(_attend("native", **options), tensors)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@given(batch=st.integers(1, 2), **GEOMETRY)
def test_gradients_in_bands_match_the_reference(batch, size, **options):
    tensors = [torch.randn(batch, 6, *size) for _ in range(3)]
    options["num_heads"] = 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned, "NATIVE_WORKSPACE", (1, 1))
        assert_same(_attend("native", **options), _attend("reference", **options), tensors)


@pytest.mark.parametrize("which", [1, 2])
def test_what_no_query_sees_has_no_gradient(which):
    # the vector's lanes past the only column of queries would see the second column of keys
    tensors = [torch.randn(1, 4, 4, 2) for _ in range(3)]
    tensors[which][..., 1] = torch.nan
    attend = _attend("native", num_heads=2, window_size=3, stride=3, dilation=2)
    y, _, *gradients = values_and_gradients(attend, tensors)
    assert y.isfinite().all()
    assert all(torch.equal(g[..., 1], torch.zeros(1, 4, 4)) for g in gradients)
