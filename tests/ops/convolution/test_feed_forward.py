"""The feed-forward network of the deployed form: every path against its steps."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convattn import ops
from convattn.ops import tuned
from convattn.ops.convolution.feed_forward import FEED_FORWARD, FeedForwardCall, feed_forward
from convattn.ops.convolution.gelu import has_kernel
from tests.compare import assert_close, assert_same
from tests.memory import peak_memory

needs_onednn = pytest.mark.skipif(
    not has_kernel(torch.float32), reason="no oneDNN with activations"
)
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def _weights(kernel: int | None, dtype: torch.dtype, dim: int = 16, hidden: int = 24) -> list[Any]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        size = math.prod(shape[1:]) ** 0.5  # outputs stay of the size of inputs
        return (torch.randn(shape, generator=generator) / size).to(dtype)

    middle: list[Any] = [None, None]
    if kernel is not None:
        middle = [random(hidden, 1, kernel, kernel), random(hidden)]
    first, last = [random(hidden, dim, 1, 1), random(hidden)], [random(dim, hidden, 1, 1)]
    return [*first, *middle, *last, random(dim)]


def _steps(x: Tensor, *weights: Any) -> Tensor:
    weight1, bias1, weight, bias, weight2, bias2 = weights
    z = F.conv2d(x, weight1, bias1)
    if weight is not None:
        z = F.conv2d(z, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    return F.conv2d(F.gelu(z), weight2, bias2)


@pytest.fixture
def _parts_of_two_images(monkeypatch):
    monkeypatch.setattr(tuned, "FFN_PIXELS", 130)  # of 9 x 7 pixels


@pytest.mark.usefixtures("_parts_of_two_images")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [None, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", FEED_FORWARD.backends)
@torch.inference_mode()
def test_every_path_computes_the_steps(path, dtype, kernel, layout):
    weights = _weights(kernel, dtype)
    for images in (0, 1, 2, 5):
        x = torch.randn(images, 16, 9, 7).to(dtype).contiguous(memory_format=layout)
        with ops.use_backend(path), ops.record_paths() as taken:
            y = feed_forward(x, *weights)
        assert taken[0].path == path
        assert_close(y, _steps(x, *weights), dtype)
        assert y.dtype == dtype
        assert images == 0 or y.is_contiguous(memory_format=layout)


@pytest.mark.usefixtures("_parts_of_two_images")
@torch.inference_mode()
def test_views_and_images_larger_than_a_part_are_computed():
    weights = _weights(3, torch.float32)
    x = torch.randn(3, 32, 40, 30)[:, ::2, ::2]
    with ops.use_backend("parts"):
        assert_close(feed_forward(x, *weights), _steps(x, *weights), torch.float32)


@pytest.mark.parametrize("kernel", [None, 3])
def test_gradients_are_those_of_the_steps(kernel):
    weights = [w for w in _weights(kernel, torch.float64) if w is not None]
    around = [None, None] if kernel is None else []

    def call(function: Any) -> Any:
        return lambda x, *w: function(x, *w[:2], *around, *w[2:])

    x = torch.randn(2, 16, 5, 4, dtype=torch.float64)
    assert_same(call(feed_forward), call(_steps), [x, *weights])


@needs_onednn
@pytest.mark.usefixtures("_parts_of_two_images")
@pytest.mark.parametrize(
    ("images", "dtype", "path"),
    [
        (2, torch.float32, "reference"),
        (3, torch.float32, "parts"),
        (3, torch.float64, "reference"),
    ],
)
@torch.no_grad()
def test_auto_takes_parts_for_more_images_than_one_part_has(images, dtype, path):
    x = torch.randn(images, 16, 9, 7, dtype=dtype)
    assert FEED_FORWARD.choose(FeedForwardCall(x, *_weights(3, dtype))).name == path


def test_parts_say_why_they_cannot():
    x, weights = torch.randn(2, 16, 9, 7), _weights(3, torch.float32)
    with pytest.raises(ValueError, match=r"'parts' cannot compute .* it has no gradient"):
        FEED_FORWARD.choose(FeedForwardCall(x.requires_grad_(), *weights), "parts")
    call = FeedForwardCall(x.detach(), *weights)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="autocast is enabled"),
    ):
        FEED_FORWARD.choose(call, "parts")


@torch.inference_mode()
def test_memory_does_not_grow_with_the_batch():
    """The wide map between the layers never has more pixels than a part."""
    side, dim, hidden = 32, 16, 64
    in_part = tuned.FFN_PIXELS // side**2
    weights = _weights(None, torch.float32, dim, hidden)
    for images in (in_part, 4 * in_part):
        x = torch.randn(images, dim, side, side).contiguous(memory_format=torch.channels_last)
        with ops.use_backend("parts"):
            feed_forward(x, *weights)
            peak = peak_memory(partial(feed_forward, x, *weights))
        assert peak <= tuned.FFN_PIXELS * (hidden + 2 * dim) * 4
