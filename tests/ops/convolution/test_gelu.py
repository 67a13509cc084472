"""A convolution followed by a GELU: every path against both steps."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from convattn import ops
from convattn.ops import processor as _processor
from convattn.ops.convolution.gelu import CONV_GELU, ConvGeluCall, conv2d_gelu, has_kernel
from tests.compare import assert_close, assert_same

needs_onednn = pytest.mark.skipif(
    not has_kernel(torch.float32), reason="this PyTorch has no oneDNN with activations"
)


def _tensors(kernel: int, groups: int, dtype: torch.dtype) -> list[Tensor]:
    weight = torch.randn(12, 12 // groups, kernel, kernel).to(dtype)
    x = torch.randn(2, 12, 9, 7).to(dtype).contiguous(memory_format=torch.channels_last)
    return [x, weight, torch.randn(12).to(dtype)]


def _plain(
    tensors: Sequence[Tensor | None], dtype: torch.dtype, padding: int = 0, groups: int = 1
) -> Tensor:
    x, weight, bias = (t if t is None else t.to(dtype) for t in tensors)
    assert x is not None
    assert weight is not None
    return F.gelu(F.conv2d(x, weight, bias, padding=padding, groups=groups))


def _taken(*tensors: Tensor, padding: int = 0, groups: int = 1) -> str:
    with ops.record_paths() as taken:
        conv2d_gelu(*tensors, padding=padding, groups=groups)
    (choice,) = taken
    return choice.path


@pytest.mark.parametrize(("kernel", "padding", "groups"), [(1, 0, 1), (3, 1, 12), (5, 2, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["auto", *CONV_GELU.backends])
@torch.inference_mode()
def test_every_path_is_the_convolution_and_the_gelu(path, dtype, kernel, padding, groups):
    x, weight, bias = _tensors(kernel, groups, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for b in (bias, None):
        expected = _plain((x, weight, b), wide, padding, groups)
        for laid in (x, x.contiguous()):
            with ops.use_backend(path):
                y = conv2d_gelu(laid, weight, b, padding=padding, groups=groups)
            assert y.dtype == dtype
            scale = expected.abs().amax()
            assert_close(y.to(wide) / scale, expected / scale, dtype)
            last = y.is_contiguous(memory_format=torch.channels_last)
            assert last == laid.is_contiguous(memory_format=torch.channels_last)


def test_has_its_gradients():
    def ours(*tensors: Tensor) -> Tensor:
        return conv2d_gelu(*tensors, padding=1, groups=12)

    assert_same(ours, lambda *t: _plain(t, torch.float64, 1, 12), _tensors(3, 12, torch.float64))
    tensors = [t.requires_grad_() for t in _tensors(1, 1, torch.float64)]
    torch.autograd.gradcheck(conv2d_gelu, tensors)


@needs_onednn
@pytest.mark.parametrize("dtype", [d for d in (torch.float32, torch.bfloat16) if has_kernel(d)])
def test_auto_takes_onednn_without_gradients(dtype):
    for kernel, groups in ((1, 1), (3, 12)):
        tensors = _tensors(kernel, groups, dtype)
        with torch.inference_mode():
            assert _taken(*tensors, padding=kernel // 2, groups=groups) == "onednn"
        tensors[1].requires_grad_()
        assert _taken(*tensors, padding=kernel // 2, groups=groups) == "reference"


@torch.no_grad()
def test_without_onednn_there_are_two_steps():
    with torch.backends.mkldnn.flags(enabled=False):
        assert _taken(*_tensors(1, 1, torch.float32)) == "reference"


@pytest.mark.parametrize("path", CONV_GELU.backends)
@torch.no_grad()
def test_every_path_is_counted_as_a_convolution(path):
    tensors = _tensors(3, 4, torch.float32)
    with ops.use_backend(path), FlopCounterMode(display=False) as counter:
        y = conv2d_gelu(*tensors, padding=1, groups=4)
    assert counter.get_total_flops() == 2 * y.numel() * tensors[1][0].numel()


X, W, B = _tensors(1, 1, torch.float32)
REFUSED = {
    "it has no gradient": (X, W.clone().requires_grad_(), B),
    "float32 and bfloat16, got torch.float64": (X.double(), W.double(), B.double()),
    "must have one type": (X, W, B.bfloat16()),
    "channels last": (X.contiguous(), W, B),
    "has no pixel": (X[:0], W, B),
}


@needs_onednn
@pytest.mark.parametrize("sentence", REFUSED)
def test_onednn_says_why_it_cannot(sentence):
    with pytest.raises(ValueError, match=f"backend 'onednn' cannot compute .*{sentence}"):
        CONV_GELU.choose(ConvGeluCall(*REFUSED[sentence], 0, 1), "onednn")


@pytest.fixture
def _processor_without_bfloat16(monkeypatch):
    """PyTorch looks at the processor itself, which no variable changes: its answer is replaced."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    _processor._answer.cache_clear()
    yield
    _processor._answer.cache_clear()


@needs_onednn
@pytest.mark.usefixtures("_processor_without_bfloat16")
@torch.no_grad()
def test_a_type_that_the_processor_does_not_convolve_takes_two_steps():
    assert _taken(*_tensors(1, 1, torch.float32)) == "onednn"
    tensors = _tensors(1, 1, torch.bfloat16)
    assert _taken(*tensors) == "reference"
    with pytest.raises(ValueError, match=r"oneDNN does not convolve torch\.bfloat16"):
        CONV_GELU.choose(ConvGeluCall(tensors[0], tensors[1], None, 0, 1), "onednn")
    assert_close(conv2d_gelu(*tensors).float(), _plain(tensors, torch.float32), torch.bfloat16)


@torch.no_grad()
def test_autocast_chooses_the_type():
    tensors = _tensors(1, 1, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv2d_gelu(*tensors)
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), _plain(tensors, torch.float32), torch.bfloat16)


@torch.no_grad()
def test_no_image_gives_no_image():
    x, weight, bias = _tensors(1, 1, torch.float32)
    assert conv2d_gelu(x[:0], weight, bias).shape == (0, 12, 9, 7)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_forward_mode_has_its_derivative():
    x, weight, bias = _tensors(1, 1, torch.float32)

    def ours(x: Tensor) -> Tensor:
        return conv2d_gelu(x, weight, bias)

    def theirs(x: Tensor) -> Tensor:
        return F.gelu(F.conv2d(x, weight, bias))

    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.randn_like(x))
        actual, expected = (forward_ad.unpack_dual(f(dual)).tangent for f in (ours, theirs))
    assert_close(actual, expected, torch.float32)
