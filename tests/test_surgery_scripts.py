"""`replace` on scripted, exported, traced and quantized networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import MixedConv2d
from torch import nn
from torchvision.ops import DeformConv2d

import convattn
from tests.test_surgery import OPERATORS, every_operator, narrow_resnet, small

x = torch.randn(2, 8, 9, 7)
pytestmark = pytest.mark.filterwarnings("ignore")  # torch deprecates TorchScript and quantization


@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda net: torch.jit.trace(net.eval(), x)], ids=["script", "trace"]
)
def test_scripted_models_raise(make):
    with pytest.raises(
        TypeError, match=r"is a TorchScript module.*call replace on the model itself, then"
    ):
        convattn.replace(make(small()), "acmix", where="*")
    part = nn.Sequential(make(small()), nn.ReLU())
    with pytest.raises(
        ValueError, match=r"'0' is a TorchScript module.*call replace on the model itself"
    ):
        convattn.replace(part, "acmix", where="*")
    part.append(nn.Conv2d(8, 8, 3, padding=1))
    with pytest.raises(ValueError, match=r"called '0\.0', but '0\.0' is a TorchScript module"):
        convattn.replace(part, "acmix", where="0.0")


def test_exported_programs_raise():
    program = torch.export.export(small().eval(), (x,))
    with pytest.raises(TypeError, match="got ExportedProgram: call replace on the model itself"):
        convattn.replace(program, "acmix", where="*")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a graph of operations; call replace on the model itself"):
        convattn.replace(program.module(), "acmix", where="*")


@every_operator
@pytest.mark.parametrize("keep", [False, True])
def test_convolutions_of_traced_graphs_are_replaced(operator, keep):
    graph: Any = torch.fx.symbolic_trace(narrow_resnet().eval())
    images = torch.randn(1, 3, 64, 64)
    expected = graph(images)
    report = convattn.replace(graph, operator, where="layer4.*.conv2", keep=keep)
    assert list(report.replaced) == ["layer4.0.conv2"]
    assert torch.equal(graph(images), expected) is keep
    assert isinstance(graph.get_submodule("layer4.0.conv2"), OPERATORS[operator]) or keep


def test_the_error_names_quantized_convolutions():
    from torch.ao import quantization

    net: Any = small().eval()
    net.qconfig = quantization.get_default_qconfig("x86")
    quantization.prepare(net, inplace=True)
    net(x)
    quantization.convert(net, inplace=True)
    with pytest.raises(
        ValueError,
        match=r"'0' is torch\.ao\.nn\.quantized.*Conv2d, and only .* before quantization",
    ):
        convattn.replace(net, "acmix", where="*")
    net.append(nn.Conv2d(8, 8, 3, padding=1))
    with pytest.raises(ValueError, match=r"called '0', but '0' is torch\.ao\.nn\.quantized"):
        convattn.replace(net, "acmix", where="0")


def test_a_block_named_conv_is_searched_for_convolutions():
    net = nn.Sequential(MixedConv2d(8, 8, [3, 5], padding="same"), DeformConv2d(8, 8, 3))
    with pytest.raises(ValueError, match=r"for its 2 convolutions use '0\.\*'"):
        convattn.replace(net, "acmix", where="0")
    with pytest.raises(
        ValueError, match=r"'1' is torchvision\.ops.*only nn\.Conv2d can be replaced"
    ):
        convattn.replace(net, "acmix", where="1")


def test_a_network_without_convolutions_raises():
    with pytest.raises(ValueError, match=r"the model has no convolution$"):
        convattn.replace(nn.Sequential(nn.Linear(3, 3)), "acmix", where="*")
    for wrong in (None, {"0": nn.Conv2d(8, 8, 3)}, [nn.Conv2d(8, 8, 3)]):
        with pytest.raises(TypeError, match=r"model must be an nn\.Module"):
            convattn.replace(wrong, "acmix", where="*")  # type: ignore[arg-type]
