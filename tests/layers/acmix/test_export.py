"""ACmix as a graph: exported, and compiled for maps whose size changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from convattn import ACmix
from convattn.layers.attention.choice import ATTENTIONS
from tests.compare import assert_close
from tests.layers.properties import randomise

pytestmark = pytest.mark.slow


def build(deployed: bool, **options: Any) -> ACmix:
    layer = randomise(ACmix(16, **options)).eval()
    if deployed:
        layer.reparameterize()
    return layer


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_it_exports(attention, deployed):
    layer = build(deployed, attention=attention)
    x = torch.randn(2, 16, 9, 11)
    assert_close(torch.export.export(layer, (x,)).module()(x), layer(x), torch.float32)


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize(
    "options", [{"mix": "convolution"}, {"attention": "global"}, {"attention": "shifted_window"}]
)
def test_it_exports_for_maps_of_any_size(options, deployed):
    layer, auto = build(deployed, **options), torch.export.Dim.AUTO
    sizes = ({0: auto, 2: auto, 3: auto},)
    graph = torch.export.export(layer, (torch.randn(2, 16, 14, 21),), dynamic_shapes=sizes).module()
    for size in [(28, 14), (35, 63)]:  # windows keep to what the window divides
        x = torch.randn(3, 16, *size)
        assert_close(graph(x), layer(x), torch.float32)


@pytest.mark.parametrize(
    ("options", "deployed", "graphs"),
    [
        # of a map that is small enough, oneDNN makes another call
        ({"mix": "convolution"}, False, 3),
        ({"mix": "convolution"}, True, 3),
        ({"attention": "global"}, False, 3),
        # each of those for maps that windows fill, and for all others
        ({"attention": "window", "mix": "attention"}, False, 5),
        ({"attention": "shifted_window"}, False, 7),
        ({"attention": "shifted_window"}, True, 7),
    ],
)
def test_sizes_that_change_are_compiled_a_few_times(options, graphs, deployed):
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(build(deployed, **options), fullgraph=True, backend=counter)
    sizes = [(9, 8), (14, 14), (16, 20), (28, 28), (21, 33), (30, 14), (35, 35), (40, 22), (17, 50)]
    with torch.no_grad():
        for size in [*sizes, (56, 56), (33, 47), (63, 41), (41, 63), (28, 63)]:
            compiled(torch.randn(1, 16, *size))
    assert counter.frame_count <= graphs
