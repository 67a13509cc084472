"""The list of properties that every operator has; a test class names the operator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.compare import assert_close, assert_same, values_and_gradients

SHAPES = [(2, 8, 6, 9), (1, 8, 7, 7), (2, 8, 1, 1), (1, 8, 1, 11), (2, 8, 13, 2)]


class OperatorProperties:
    """Subclasses give ``fast``, ``reference`` and ``inputs``."""

    def fast(self, *tensors: Tensor) -> Tensor:
        raise NotImplementedError

    def reference(self, *tensors: Tensor) -> Tensor:
        raise NotImplementedError

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        raise NotImplementedError

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_matches_the_reference(self, shape, dtype):
        assert_same(self.fast, self.reference, self.inputs(shape, dtype))

    def test_gradients_match_finite_differences(self):
        tensors = [t.requires_grad_() for t in self.inputs((2, 4, 3, 2), torch.float64)]
        torch.autograd.gradcheck(self.fast, tensors)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_follows_float32(self, dtype):
        tensors = self.inputs((2, 8, 6, 9), dtype)
        ours = values_and_gradients(self.fast, tensors)
        theirs = values_and_gradients(self.reference, [t.float() for t in tensors])
        for half, single in zip(ours, theirs, strict=True):
            assert half.dtype == dtype
            assert_close(half.float(), single, dtype)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_bears_large_values(self, dtype):
        tensors = [t * 30 if t.dim() > 1 else t for t in self.inputs((1, 8, 6, 9), dtype)]
        assert all(t.isfinite().all() for t in values_and_gradients(self.fast, tensors))

    def test_autocast_follows_float32(self):
        tensors = self.inputs((2, 8, 6, 9), torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = self.fast(*tensors)
        assert_close(output.float(), self.reference(*tensors), torch.bfloat16)

    def test_memory_layout_does_not_matter(self):
        tensors = self.inputs((2, 8, 6, 9), torch.float64)
        expected = values_and_gradients(self.fast, tensors)
        for layout in (_channels_last, _every_second, _transposed):
            actual = values_and_gradients(lambda *ts, f=layout: self.fast(*map(f, ts)), tensors)
            assert_close(actual, expected, torch.float64)

    def test_images_do_not_mix(self):
        tensors = self.inputs((3, 8, 6, 9), torch.float64)
        alone = [t[1:2] if t.dim() > 1 else t for t in tensors]
        assert_close(self.fast(*tensors)[1:2], self.fast(*alone), torch.float64)

    def test_function_transforms_have_every_derivative(self):
        tensors, along = (tuple(self.inputs((2, 4, 3, 2), torch.float64)) for _ in range(2))
        actual, expected = (_derivatives(f, tensors, along) for f in (self.fast, self.reference))
        assert_close(actual, expected, torch.float64)

    def test_no_image_gives_no_image(self):
        assert_same(self.fast, self.reference, self.inputs((0, 8, 6, 9), torch.float32))

    def test_runs_on_the_meta_device(self):
        tensors = self.inputs((2, 8, 6, 9), torch.float32)
        output = self.fast(*(t.to("meta") for t in tensors))
        assert output.is_meta
        assert output.shape == self.fast(*tensors).shape

    @pytest.mark.slow
    def test_compiles_whole(self):
        torch._dynamo.reset()
        # aot_eager traces forward and backward and needs no C++ compiler. The first graph is for
        # one size, the second for any.
        compiled = torch.compile(self.fast, fullgraph=True, backend="aot_eager")
        for shape in [(2, 8, 6, 9), (2, 8, 7, 5)]:
            assert_same(compiled, self.fast, self.inputs(shape, torch.float32))


def _derivatives(
    function: Callable[..., Tensor], tensors: tuple[Tensor, ...], along: tuple[Tensor, ...]
) -> list[Tensor]:
    """Return the value, how it changes along other tensors, and how its gradient does."""

    def slope(*tensors: Tensor) -> tuple[Tensor, ...]:
        every = tuple(range(len(tensors)))
        return torch.func.grad(lambda *t: function(*t).square().sum(), argnums=every)(*tensors)

    value, change, *_ = torch.func.jvp(function, tensors, along)
    bend = torch.func.jvp(slope, tensors, along)[1]
    return [value, change, *bend]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _every_second(x: Tensor) -> Tensor:
    return torch.stack([x, x], dim=-1)[..., 0]


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x
