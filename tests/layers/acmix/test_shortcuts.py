"""ACmix reads weights in place of calling layers only where nobody would notice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from convattn import ACmix, reparameterize
from convattn.layers import SlidingWindowAttention, WindowAttention
from convattn.layers.attention.choice import ATTENTIONS
from tests.compare import assert_close
from tests.layers.properties import randomise

LAYERS = ("q_proj", "k_proj", "v_proj", "fc", "dep_conv", "attn")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "dilation": 2, "window_size": 3},
    {"attention": "window", "window_size": 3, "fc_bias": True, "stride": 2},
    {"attention": "spatial_reduction", "stride": 3},
    {"attention": "patchwise", "window_size": 3},
    {"in_chans": 48, "kernel_size": 5, "num_heads": 2},
]


def trained(**options: Any) -> Any:
    return randomise(ACmix(options.pop("in_chans", 16), 16, **options)).double()


def maps(layer: Any, size: tuple[int, int] = (9, 7)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, layer.in_chans, *size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_every_hook_fires_once(register, attention, name):
    layer, seen = trained(attention=attention), []
    getattr(layer.get_submodule(name), register)(lambda *_: seen.append(name))
    layer(maps(layer).requires_grad_()).sum().backward()
    assert seen == [name]


@pytest.mark.parametrize("name", LAYERS[:5])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layers_with_a_hook_compute_the_same(options, name):
    layer = trained(**options).eval()
    called = copy.deepcopy(layer)
    called.get_submodule(name).register_forward_hook(lambda *_: None)
    for size in [(9, 7), (1, 1), (2, 3)]:
        assert_close(called(maps(layer, size)), layer(maps(layer, size)), torch.float64)


@pytest.mark.parametrize("shift", ["fixed", "tensor"])
def test_shifts_without_weights_are_taken_from_a_layer_that_is_called(shift):
    layer = trained(shift=shift, stride=2, dilation=2, window_size=3)
    expected = layer(maps(layer))
    layer.fc.register_forward_hook(lambda *_: None)
    assert_close(layer(maps(layer)), expected, torch.float64)


class Adapted(nn.Module):
    """What an adapter puts in the place of a layer: it still shows the weight it adds to."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base, self.added = base, randomise(copy.deepcopy(base))

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.added(x)


def adapt(layer: Any, name: str) -> None:
    setattr(layer, name, Adapted(layer.get_submodule(name)))


def double_by_hook(layer: Any, name: str) -> None:
    layer.get_submodule(name).register_forward_hook(lambda module, args, y: 2 * y)


def double_by_instance(layer: Any, name: str) -> None:
    module = layer.get_submodule(name)
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)


def double_by_parametrization(layer: Any, name: str) -> None:
    module = layer.get_submodule(name)
    parametrizations.weight_norm(module)
    module.parametrizations.weight.original0.data.mul_(2)
    if module.bias is not None:
        module.bias.data.mul_(2)


def double(layer: Any, name: str) -> None:
    for parameter in layer.get_submodule(name).parameters():
        parameter.data.mul_(2)


@pytest.mark.parametrize("name", LAYERS[:5])
@pytest.mark.parametrize("attention", ["sliding_window", "window"])
@pytest.mark.parametrize(
    "change", [adapt, double_by_hook, double_by_instance, double_by_parametrization]
)
def test_a_layer_with_another_computation_is_called(change, attention, name):
    layer = trained(attention=attention, window_size=3).eval()
    changed, expected = copy.deepcopy(layer), copy.deepcopy(layer)
    double(expected, name)
    change(changed, name)
    if change is adapt:
        changed.get_submodule(name).added.load_state_dict(layer.get_submodule(name).state_dict())
    assert_close(changed(maps(layer)), expected(maps(layer)), torch.float64)


@pytest.mark.parametrize("name", LAYERS[:5])
@pytest.mark.parametrize("attention", ["sliding_window", "window"])
def test_pruned_layers_train(attention, name):
    layer = trained(attention=attention, window_size=3)
    layer.get_submodule(name).requires_grad_(True)
    prune.random_unstructured(layer.get_submodule(name), "weight", 0.5)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(maps(layer)).square().mean().backward()
        optimizer.step()
    y = layer(maps(layer))
    prune.remove(layer.get_submodule(name), "weight")
    assert_close(layer(maps(layer)), y, torch.float64)


def test_another_convolution_in_the_place_of_a_projection():
    layer = trained(attention="window", window_size=3)
    layer.k_proj = nn.Conv2d(16, 16, 3, padding=1, groups=2).double()
    called = copy.deepcopy(layer)
    called.q_proj.register_forward_hook(lambda *_: None)
    assert_close(layer(maps(layer)), called(maps(layer)), torch.float64)


@pytest.mark.parametrize("mix", ["attention", "learned"])
def test_all_queries_are_projected_if_the_projection_has_a_hook(mix):
    layer, sizes = trained(mix=mix, stride=2), []
    layer.q_proj.register_forward_hook(lambda _, args, y: sizes.append(y.shape[2:]))
    layer(maps(layer))
    assert sizes == [(9, 7)]


def test_a_wide_query_projection_reads_the_whole_map():
    layer = trained(mix="attention", stride=2)
    wide = copy.deepcopy(layer)
    wide.q_proj = nn.Conv2d(16, 16, 3, padding=1).double()
    with torch.no_grad():
        wide.q_proj.weight.zero_()[:, :, 1, 1] = layer.q_proj.weight[:, :, 0, 0]
        wide.q_proj.weight[:, :, 0, 1] = 1.0
        wide.q_proj.bias.copy_(layer.q_proj.bias)
    x = maps(layer)
    above = torch.zeros_like(x)
    above[:, :, 1:] = x[:, :, :-1]
    q = layer.q_proj(x) + above.sum(1, keepdim=True)
    assert_close(wide(x), layer.attn(q, layer.k_proj(x), layer.v_proj(x)), torch.float64)


def test_projections_may_share_their_weights():
    layer = trained(attention="window", window_size=3, mix="sum")
    shared = copy.deepcopy(layer)
    shared.k_proj.weight = shared.v_proj.weight = shared.q_proj.weight
    for other in (layer.k_proj, layer.v_proj):
        other.weight = nn.Parameter(layer.q_proj.weight.detach().clone())
    for each in (layer, shared):
        each(maps(layer)).square().sum().backward()
    assert_close(shared(maps(layer)), layer(maps(layer)), torch.float64)
    apart = (layer.q_proj, layer.k_proj, layer.v_proj)
    total = sum((p.weight.grad for p in apart), start=torch.zeros(()))
    assert_close(shared.q_proj.weight.grad, total, torch.float64)


@pytest.mark.parametrize("attention", ["sliding_window", "window", "spatial_reduction"])
@pytest.mark.parametrize("name", LAYERS[:5])
@pytest.mark.parametrize(
    "change", [adapt, double_by_hook, double_by_instance, double_by_parametrization]
)
def test_changed_layers_deploy_exactly(change, name, attention):
    layer = trained(attention=attention).eval()
    change(layer, name)
    expected = layer(maps(layer))
    deployed = reparameterize(layer, inplace=True)
    assert_close(deployed(maps(layer)), expected, torch.float64)


@pytest.mark.parametrize("name", [*LAYERS[:5], "attn.proj"])
def test_pruned_layers_deploy_exactly(name):
    layer = trained(attention="spatial_reduction" if name != "attn.proj" else "window").eval()
    prune.random_unstructured(layer.get_submodule(name), "weight", 0.5)
    expected = layer(maps(layer))
    layer.reparameterize()
    assert_close(layer(maps(layer)), expected, torch.float64)


def test_a_projection_used_twice_is_not_scaled():
    layer = trained(attention="global").eval()
    layer.k_proj = layer.v_proj
    expected = layer(maps(layer))
    layer.reparameterize()
    assert_close(layer(maps(layer)), expected, torch.float64)


class Sevens(WindowAttention):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.full_like(v, 7)


class All(SlidingWindowAttention):
    """Sees every query, as what derives from an ``AttentionPart`` may count on."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert q.shape == k.shape
        return super().forward(q, k, v)


def test_a_subclass_of_a_sliding_window_gets_every_query():
    layer = trained(mix="attention", stride=2)
    derived = trained(mix="attention", stride=2, attention=All(16, stride=2))
    assert_close(derived(maps(layer)), layer(maps(layer)), torch.float64)


def test_the_forward_of_a_derived_attention_is_called():
    layer = ACmix(16, attention=Sevens(16, window_size=3), mix="attention")
    assert (layer(torch.randn(1, 16, 5, 5)) == 7).all()
