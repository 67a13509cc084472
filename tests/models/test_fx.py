"""Graphs of ``torch.fx``, for torchvision's features and quantisation, compute the same."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.fx
import torchvision
from torch import Tensor, nn
from torch.fx.proxy import TraceError
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import convattn
from convattn import ACmix, GLMix, GLMixBlock, XVolution
from tests.compare import assert_close
from tests.layers.properties import randomise

NAMES = (
    "acmix_deit_nano",
    "acmix_pvt_nano",
    "acmix_resnet_nano",
    "acmix_san_nano",
    "acmix_swin_nano",
    "glnet_nano",
    "xvolution_resnet_nano",
)
OPERATORS = ("acmix", "xvolution", "glmix")


@pytest.fixture(params=[False, True], ids=["trained", "deployed"])
def network(request, name) -> Any:
    model = randomise(convattn.create_model(name)).eval()
    return convattn.reparameterize(model) if request.param else model


@torch.no_grad()
def assert_same(traced: nn.Module, model: nn.Module) -> None:
    x = torch.randn(2, 3, 48, 80)
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_traced_backbone_computes_the_same(network):
    assert_same(torch.fx.symbolic_trace(network), network)


@pytest.mark.parametrize("name", NAMES)
def test_torchvision_finds_the_maps_of_a_backbone(name, network):
    block = "layer2.0" if "resnet" in name else "stages.1.blocks.0"
    _, names = get_graph_node_names(network)
    assert any(found.startswith(block) for found in names)
    seen: list[Tensor] = []
    handle = network.get_submodule(block).register_forward_hook(lambda _, __, y: seen.append(y))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        network(x)
        handle.remove()
        # a block with tokens is one node, which returns the map and the tokens
        found = create_feature_extractor(network, {block: "map"})(x)["map"]
    assert torch.equal(*((y[0] if isinstance(y, tuple) else y) for y in (found, seen[0])))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_changed_network_is_traced(operator, keep):
    model = torchvision.models.resnet18().eval()
    convattn.replace(model, operator, where="layer4.*.conv2", keep=keep)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "attn_norm.weight")):  # they start at zero
            nn.init.constant_(parameter, 0.5)
    assert_same(torch.fx.symbolic_trace(model), model)
    nodes = {"layer3": "before", "layer4.1.conv2": "operator"}
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = create_feature_extractor(model, nodes)(x)
    assert found["before"].shape == (2, 256, 4, 4)
    assert found["operator"].shape == (2, 512, 2, 2)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_changed_network_is_prepared_for_quantisation(operator):
    quantization = pytest.importorskip("torch.ao.quantization")
    from torch.ao.quantization.quantize_fx import prepare_fx

    model = torchvision.models.resnet18().eval()
    convattn.replace(model, operator, where="layer4.*.conv2")
    x = torch.randn(1, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = quantization.get_default_qconfig_mapping()
        prepared = prepare_fx(model, settings, (x,))
    with torch.no_grad():
        assert_close(prepared(x), model(x), torch.float32)


LAYERS = [ACmix(8), XVolution(8), GLMix(8, slots=4, num_heads=2), GLMixBlock(8, head_dim=8)]


def kind(layer: nn.Module) -> str:
    return type(layer).__name__


@pytest.mark.parametrize("layer", LAYERS, ids=kind)
def test_a_layer_is_one_node(layer):
    graph = torch.fx.symbolic_trace(nn.Sequential(layer)).graph
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["0"]
    assert len(graph.nodes) == 3  # input and output


@pytest.mark.parametrize("layer", LAYERS, ids=kind)
def test_the_inside_of_a_layer_is_refused(layer):
    with pytest.raises(TraceError, match="looks at the size of x; trace a network that holds"):
        torch.fx.symbolic_trace(layer)


@pytest.mark.parametrize("layer", LAYERS, ids=kind)
def test_inputs_may_have_names(layer):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x=x)

    model = Named().eval()
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("options", [{}, {"tracer_kwargs": {"leaf_modules": [ACmix]}}])
def test_hooks_are_called_once_when_the_graph_runs(options):
    layer, seen = ACmix(8), []

    def doubled(_: nn.Module, __: Any, y: Tensor) -> Tensor:
        seen.append("after")
        return 2 * y

    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    layer.register_forward_hook(doubled)
    model = nn.Sequential(layer).eval()
    extractor = create_feature_extractor(model, ["0"], **options)
    assert not seen
    x = torch.randn(1, 8, 5, 5)
    found = extractor(x)["0"]
    assert seen == ["before", "after"]
    assert torch.equal(found, model(x))


class Attends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return convattn.ops.global_attention(x, x, x, num_heads=2)


def test_an_error_says_how_a_function_becomes_one_node():
    with pytest.raises(TraceError, match=r"leaf_modules.*torch\.fx\.wrap"):
        torch.fx.symbolic_trace(Attends())
