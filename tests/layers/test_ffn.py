from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from convattn.layers import ConvMlp
from convattn.ops import _fused_conv
from tests.compare import assert_close
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


def _steps(mlp: nn.Module, x: Tensor) -> set[str]:
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as seen:
        mlp(x)
    return {event.key for event in seen.key_averages()}


@pytest.mark.skipif(not _fused_conv._available(), reason="no oneDNN with activations")
@pytest.mark.parametrize("dwconv", [True, False])
def test_the_deployed_network_has_no_pass_for_the_gelu(dwconv):
    mlp = randomise(ConvMlp(16, 24, dwconv=dwconv)).eval()
    x = torch.randn(2, 16, 9, 7).contiguous(memory_format=torch.channels_last)
    expected = mlp(x).detach()  # with gradients
    mlp.reparameterize()
    assert "aten::gelu" not in _steps(mlp, x)
    with torch.inference_mode():
        assert_close(mlp(x), expected, torch.float32)


@pytest.mark.parametrize("name", ["fc1", "act"])
def test_who_looks_between_sees_everything(name):
    mlp, seen = randomise(ConvMlp(16, 24)), []
    mlp.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[2]))
    x = torch.randn(2, 16, 9, 7).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        y = mlp(x)
        assert_close(mlp.fc2(seen[0] if name == "act" else F.gelu(seen[0])), y, torch.float32)


def test_another_activation_takes_the_place_of_the_gelu():
    mlp = randomise(ConvMlp(16, 24))
    mlp.act = nn.GELU(approximate="tanh")
    x = torch.randn(2, 16, 9, 7).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        z = F.gelu(mlp.fc1(x), approximate="tanh")
        torch.testing.assert_close(mlp(x), mlp.fc2(z), rtol=0, atol=0)
