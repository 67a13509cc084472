"""The list of properties that every layer has; a test class names the layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from tests.compare import assert_close

SHAPES = [(2, 16, 9, 7), (1, 16, 12, 5), (2, 16, 1, 1), (1, 16, 2, 3)]


Layer = TypeVar("Layer", bound=nn.Module)


def randomise(layer: Layer) -> Layer:
    """Give every parameter and statistic a value of order 1, so that nothing is hidden by a 0."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in layer.state_dict().items():
        if tensor.is_floating_point():
            noise = 0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            centred = tensor.dim() > 1 or name.endswith(("bias", "mean"))
            tensor.copy_(noise if centred else 1 + 0.3 * noise.tanh())
    return layer


class LayerProperties:
    """Subclasses give ``build``, and what the layer does to shapes."""

    channels = 16
    out_channels = 16
    stride = 1
    continuous = True  # False where rounding may move a pixel to another cluster

    def build(self, backend: str = "auto") -> nn.Module:
        raise NotImplementedError

    def layer(self, dtype: torch.dtype = torch.float64, backend: str = "auto") -> nn.Module:
        return randomise(self.build(backend)).to(dtype).eval()

    def reference(self, x: Tensor) -> Tensor:
        return self.layer(x.dtype, backend="reference")(x)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_any_size_of_map_matches_the_reference(self, shape):
        x = torch.randn(shape, dtype=torch.float64)
        y = self.layer()(x)
        rows, columns = (-(-n // self.stride) for n in shape[2:])
        assert y.shape == (shape[0], self.out_channels, rows, columns)
        assert_close(y, self.reference(x), torch.float64)

    def test_every_parameter_gets_a_gradient(self):
        layer = self.layer().train()
        x = torch.randn(2, self.channels, 9, 7, dtype=torch.float64, requires_grad=True)
        layer(x).square().sum().backward()
        without = [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.any()]
        assert not without
        assert x.grad is not None
        assert x.grad.any()

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_keeps_its_dtype(self, dtype, training):
        layer = self.layer(dtype).train(training)
        x = torch.randn(2, self.channels, 9, 7).to(dtype)
        wide = copy.deepcopy(layer).float()
        y = layer(x.requires_grad_())
        y.float().square().mean().backward()
        assert y.dtype == dtype
        self.assert_close_in_half(y, wide(x.detach().float()))
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())

    def test_autocast_follows_float32(self):
        layer = self.layer(torch.float32)
        x = torch.randn(2, self.channels, 9, 7)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        self.assert_close_in_half(y, layer(x))

    def assert_close_in_half(self, actual: Tensor, expected: Tensor) -> None:
        assert actual.isfinite().all()
        if self.continuous:
            # A layer rounds several times in a row, at the scale of its values.
            spread = expected.std()
            assert_close(actual.float() / spread, expected / spread, torch.bfloat16)

    def test_memory_layout_does_not_matter(self):
        layer = self.layer()
        x = torch.randn(2, self.channels, 9, 7, dtype=torch.float64)
        channels_last = x.contiguous(memory_format=torch.channels_last)
        strided = torch.stack([x, x], dim=-1)[..., 0]
        for other in (channels_last, strided):
            assert_close(layer(other), layer(x), torch.float64)

    def test_images_do_not_mix_in_evaluation(self):
        layer = self.layer()
        x = torch.randn(3, self.channels, 9, 7, dtype=torch.float64)
        assert_close(layer(x)[1:2], layer(x[1:2]), torch.float64)

    def test_runs_on_the_meta_device(self):
        layer = self.build().to("meta")
        y = layer(torch.empty(2, self.channels, 9, 7, device="meta"))
        assert y.is_meta
        assert y.shape[1] == self.out_channels

    def test_a_map_has_four_dimensions(self):
        with pytest.raises(ValueError, match=r"must have shape \(B, C, H, W\), got \(16, 9, 7\)"):
            self.build()(torch.randn(16, 9, 7))

    def test_channels_must_be_those_of_the_layer(self):
        with pytest.raises(
            ValueError, match=rf"must have {self.channels} channels .* \(1, 5, 9, 7\)"
        ):
            self.build()(torch.randn(1, 5, 9, 7))

    def test_a_map_must_be_floating_point(self):
        with pytest.raises(TypeError, match=r"must be floating point, got torch\.int64"):
            self.build()(torch.ones(1, self.channels, 9, 7, dtype=torch.int64))

    @pytest.mark.slow
    def test_compiles_whole(self):
        torch._dynamo.reset()
        layer = self.layer(torch.float32)
        # aot_eager traces forward and backward and needs no C++ compiler. The first graph is for
        # one size, the second for any.
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for size in [(9, 7), (8, 10)]:
            x = torch.randn(2, self.channels, *size)
            ours = _output_and_gradients(compiled, layer, x)
            assert_close(ours, _output_and_gradients(layer, layer, x), torch.float32)


def _output_and_gradients(
    function: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor
) -> list[Tensor]:
    y = function(x)
    # The mean keeps the gradients at the order of the values that the tolerances are for.
    return [y, *torch.autograd.grad(y.square().mean(), list(layer.parameters()))]
