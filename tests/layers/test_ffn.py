from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from convattn import ops
from convattn.layers import ConvMlp
from convattn.ops import tuned
from tests.compare import assert_close
from tests.layers.properties import LayerProperties, randomise

LAYERS = ["fc1", "dwconv", "act", "fc2"]


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


def _map(images: int = 2) -> Tensor:
    return torch.randn(images, 16, 9, 7).contiguous(memory_format=torch.channels_last)


def _paths(mlp: nn.Module, x: Tensor) -> list[str]:
    with torch.inference_mode(), ops.record_paths() as taken:
        mlp(x)
    return [choice.operator for choice in taken]


@pytest.mark.parametrize("name", LAYERS)
def test_the_trained_form_calls_its_layers(name):
    mlp, seen = randomise(ConvMlp(16, 24, dwconv=True)).eval(), []
    x = _map(5)
    with torch.inference_mode():
        plain = mlp(x)
        layer = mlp.get_submodule(name)
        with layer.register_forward_hook(lambda *call: seen.append(call[2])):
            assert_close(mlp(x), plain, torch.float32)
        assert [len(y) for y in seen] == [5]
        layer.forward = lambda x: x[:, :1].expand(-1, 16 if name == "fc2" else 24, -1, -1)
        assert (mlp(x) - plain).abs().max() > 1e-3
        del layer.forward
        mlp.set_submodule(name, nn.Sequential(layer))
        assert_close(mlp(x), plain, torch.float32)


@pytest.mark.parametrize("dwconv", [True, False])
def test_the_deployed_form_is_one_step(dwconv):
    mlp = randomise(ConvMlp(16, 24, dwconv=dwconv)).eval()
    x = _map()
    with torch.inference_mode():
        expected = mlp(x)
        names = list(mlp.state_dict())
        assert _paths(mlp, x) == []
        mlp.reparameterize()
        assert _paths(mlp, x) == ["feed_forward", "conv2d_gelu"]
        assert_close(mlp(x), expected, torch.float32)
    assert list(mlp.state_dict()) == names


class _Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def _hook(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda _, __, y: 2 * y)


def _hook_before(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(lambda _, x: (2 * x[0],))


def _hook_backward(layer: nn.Module) -> None:
    layer.register_full_backward_hook(lambda *_: None)


def _replace_forward(layer: nn.Module) -> None:
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def _prune(layer: nn.Module) -> None:
    if not isinstance(layer, nn.Conv2d):
        pytest.skip("there is no weight")
    prune.random_unstructured(layer, "weight", 0.5)


def _parametrize(layer: nn.Module) -> None:
    if not isinstance(layer, nn.Conv2d):
        pytest.skip("there is no weight")
    parametrize.register_parametrization(layer, "weight", _Doubled())


@pytest.mark.parametrize("name", ["fc1", "act", "fc2"])
@pytest.mark.parametrize(
    "attach", [_hook, _hook_before, _hook_backward, _replace_forward, _prune, _parametrize]
)
def test_layers_with_attachments_are_not_fused(attach, name):
    mlp, x = randomise(ConvMlp(16, 24)).eval(), _map()
    attach(mlp.get_submodule(name))
    with torch.no_grad():
        expected = mlp(x)
        mlp.reparameterize()
        assert_close(mlp(x), expected, torch.float32)
    assert _paths(mlp, x) == []


OTHERS: list[tuple[str, Any]] = [
    ("dwconv", lambda: nn.Conv2d(24, 24, 3, groups=24, padding=1, padding_mode="reflect")),
    ("dwconv", lambda: nn.Conv2d(24, 24, 3, groups=24, padding=2, dilation=2)),
    ("fc1", lambda: nn.Conv2d(16, 24, 3, padding=1)),
    ("fc2", lambda: nn.Conv2d(24, 16, 1, groups=2)),
    ("act", lambda: nn.GELU(approximate="tanh")),
    ("act", nn.ReLU),
]


@pytest.mark.parametrize(("name", "other"), OTHERS)
@torch.inference_mode()
def test_another_layer_computes_in_its_own_way(name, other):
    mlp, x = randomise(ConvMlp(16, 24, dwconv=True)).eval(), _map()
    mlp.set_submodule(name, randomise(other()))
    expected = mlp(x)
    mlp.reparameterize()
    assert_close(mlp(x), expected, torch.float32)


@pytest.fixture
def _parts_of_two_images(monkeypatch):
    monkeypatch.setattr(tuned, "FFN_PIXELS", 130)


@pytest.mark.usefixtures("_parts_of_two_images")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_traces_and_transforms_of_the_deployed_form_take_other_sizes():
    mlp = randomise(ConvMlp(16, 24, dwconv=True))
    mlp.reparameterize()
    x = torch.randn(5, 16, 9, 7)
    with torch.no_grad():
        traced = torch.jit.trace(mlp, x, check_trace=False)
        other = torch.randn(7, 16, 11, 10)
        assert_close(traced(other), mlp(other), torch.float32)
        per_image = torch.func.vmap(lambda image: mlp(image[None])[0])(x)
        assert_close(per_image, mlp(x), torch.float32)


@pytest.mark.slow
@pytest.mark.usefixtures("_parts_of_two_images")
@pytest.mark.parametrize("deploy", [False, True])
@torch.no_grad()
def test_compiled_code_is_one_graph_for_all_sizes_of_maps(deploy):
    torch._dynamo.reset()
    mlp = randomise(ConvMlp(16, 24, dwconv=True))
    if deploy:
        mlp.reparameterize()
    compiled = torch.compile(mlp, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for images, height, width in [(5, 9, 7), (2, 30, 20), (3, 4, 5)]:
            x = torch.randn(images, 16, height, width)
            assert_close(compiled(x), mlp(x), torch.float32)
