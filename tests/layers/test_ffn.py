from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from convattn.layers import ConvMlp, ffn
from convattn.ops.convolution.gelu import has_kernel
from tests.compare import assert_close
from tests.layers.properties import LayerProperties, randomise
from tests.memory import peak_memory

needs_onednn = pytest.mark.skipif(
    not has_kernel(torch.float32), reason="no oneDNN with activations"
)
FUSED = [dtype for dtype in (torch.float32, torch.bfloat16) if has_kernel(dtype)]


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


@torch.inference_mode()
@pytest.mark.parametrize(
    "options", [{"padding_mode": "reflect", "padding": 1}, {"dilation": 2, "padding": 2}]
)
def test_another_convolution_is_computed_in_its_own_way(options):
    mlp = randomise(ConvMlp(16, 24, dwconv=True)).eval()
    mlp.reparameterize()
    mlp.dwconv = randomise(nn.Conv2d(24, 24, 3, groups=24, **options))
    x = torch.randn(2, 16, 9, 7).contiguous(memory_format=torch.channels_last)
    assert_close(mlp(x), mlp.fc2(F.gelu(mlp.dwconv(mlp.fc1(x)))), torch.float32)


def _steps(mlp: nn.Module, x: Tensor) -> set[str]:
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as seen:
        mlp(x)
    return {event.key for event in seen.key_averages()}


@needs_onednn
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


class Parts:
    """How many images each pass through the network had, and what it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: list[int] = []
        hidden = ConvMlp._fused_hidden

        def spy(mlp: ConvMlp, x: Tensor) -> Tensor:
            self.images.append(x.shape[0])
            return hidden(mlp, x)

        monkeypatch.setattr(ConvMlp, "_fused_hidden", spy)

    def of(self, mlp: nn.Module, x: Tensor) -> list[int]:
        self.images.clear()
        mlp(x)
        return list(self.images)


@pytest.fixture
def parts(monkeypatch):
    """Parts of 130 pixels: two images of 9 x 7."""
    monkeypatch.setattr(ffn, "PIXELS", 130)
    return Parts(monkeypatch)


@needs_onednn
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", FUSED)
@pytest.mark.parametrize("options", [{}, {"dwconv": True}, {"dwconv": True, "kernel_size": 5}])
def test_images_in_parts_give_what_all_at_once_give(options, dtype, memory_format, parts):
    mlp = randomise(ConvMlp(16, 24, **options)).to(dtype).eval()
    for deploy in (False, True):
        if deploy:
            mlp.reparameterize()
        for images in (0, 1, 2, 5):
            x = torch.randn(images, 16, 9, 7).to(dtype).contiguous(memory_format=memory_format)
            whole = mlp(x).detach()  # with gradients
            with torch.inference_mode():
                y = mlp(x)
                assert parts.of(mlp, x) == {0: [0], 1: [1], 2: [2], 5: [2, 2, 1]}[images]
            assert_close(y, whole, dtype)
            assert y.dtype == dtype
            assert images == 0 or y.is_contiguous(memory_format=memory_format)


@needs_onednn
@torch.no_grad()
def test_a_part_is_one_image_at_least_and_no_view_is_missed(parts):
    mlp = randomise(ConvMlp(16, 24, dwconv=True)).eval()
    x = torch.randn(3, 32, 40, 30)[:, ::2, ::2]
    assert parts.of(mlp, x) == [1, 1, 1]
    assert_close(mlp(x), mlp.fc2(mlp._hidden(x)), torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("name", ["fc1", "dwconv", "act", "fc2"])
def test_who_looks_at_a_layer_sees_all_images(name, parts):
    mlp, seen = randomise(ConvMlp(16, 24, dwconv=True)), []
    x = torch.randn(5, 16, 9, 7)
    before = mlp(x)
    with mlp.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[2])):
        assert parts.of(mlp, x) == [5]
    assert [len(y) for y in seen] == [5]
    every = nn.modules.module.register_module_forward_hook(lambda *call: None)
    with every:
        assert parts.of(mlp, x) == [5]
    if has_kernel(torch.float32):
        assert parts.of(mlp, x) == [2, 2, 1]
    assert_close(mlp(x), before, torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("name", ["dwconv", "act", "fc2"])
def test_a_layer_that_somebody_put_in_sees_all_images(name, parts):
    mlp, x = randomise(ConvMlp(16, 24, dwconv=True)), torch.randn(5, 16, 9, 7)
    before = mlp(x)
    mlp.set_submodule(name, nn.Sequential(mlp.get_submodule(name)))
    assert parts.of(mlp, x) == [5]
    assert_close(mlp(x), before, torch.float32)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_gradients_exports_and_transforms_see_all_images(parts):
    mlp = randomise(ConvMlp(16, 24, dwconv=True))
    x = torch.randn(5, 16, 9, 7)
    assert parts.of(mlp, x) == [5]
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert parts.of(mlp, x) == [5]
        traced = torch.jit.trace(mlp, x, check_trace=False)
        other = torch.randn(7, 16, 11, 10)
        assert_close(traced(other), mlp(other), torch.float32)
        per_image = torch.func.vmap(lambda image: mlp(image[None])[0])(x)
        assert_close(per_image, mlp(x), torch.float32)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_code_is_one_graph_for_all_sizes_of_maps(monkeypatch):
    monkeypatch.setattr(ffn, "PIXELS", 130)
    torch._dynamo.reset()
    mlp = randomise(ConvMlp(16, 24, dwconv=True))
    compiled = torch.compile(mlp, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for images, height, width in [(5, 9, 7), (2, 30, 20), (3, 4, 5)]:
            x = torch.randn(images, 16, height, width)
            assert_close(compiled(x), mlp(x), torch.float32)


@needs_onednn
@torch.inference_mode()
def test_memory_does_not_grow_with_the_batch():
    """Of the wide map that lies between the layers there are as many pixels as a part has."""
    side, hidden = 32, 64
    in_part = ffn.PIXELS // side**2
    mlp = randomise(ConvMlp(16, hidden)).eval()
    for images in (in_part, 4 * in_part):
        x = torch.randn(images, 16, side, side).contiguous(memory_format=torch.channels_last)
        mlp(x)
        assert peak_memory(partial(mlp, x)) <= ffn.PIXELS * (hidden + 2 * 16) * 4
