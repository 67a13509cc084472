from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers import ConvMlp
from tests.layers.properties import LayerProperties, randomise


class TestConvMlp(LayerProperties):
    dwconv = True

    def build(self, backend: str = "auto") -> ConvMlp:
        return ConvMlp(16, 24, dwconv=self.dwconv)

    def reference(self, x: Tensor) -> Tensor:
        state = randomise(self.build()).to(x.dtype).state_dict()
        z = F.conv2d(x, state["fc1.weight"], state["fc1.bias"])
        if self.dwconv:
            weight, bias = state["dwconv.weight"], state["dwconv.bias"]
            z = z + F.conv2d(z, weight, bias, padding=1, groups=24)
        return F.conv2d(F.gelu(z), state["fc2.weight"], state["fc2.bias"])


class TestDeployedConvMlp(TestConvMlp):
    def layer(self, dtype: torch.dtype = torch.float64, backend: str = "auto") -> nn.Module:
        mlp = randomise(self.build()).to(dtype).eval()
        mlp.reparameterize()
        mlp.reparameterize()  # nothing is left
        return mlp


class TestPlainConvMlp(TestConvMlp):
    dwconv = False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 3), "dim must be at least 1, got 0"),
        ((8, -1, 3), "hidden_dim must be at least 1, got -1"),
        ((8, 8, 2), "kernel_size must be odd, got 2; use 1 or 3"),
    ],
)
def test_rejects(arguments, message):
    dim, hidden_dim, kernel_size = arguments
    with pytest.raises(ValueError, match=message):
        ConvMlp(dim, hidden_dim, kernel_size=kernel_size)
