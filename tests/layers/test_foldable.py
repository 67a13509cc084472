"""A layer that has something attached is left as it is, and named; the rest is folded."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from timm.layers import LayerScale2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.models.resnet import BasicBlock

import convattn
from convattn import ACmix, GLMix
from convattn.layers.conv2d import ConvBeside
from tests.golden import relative_error
from tests.layers.properties import randomise

Attach = Callable[[nn.Module, str], None]  # the module that holds the layer, and the layer's name


def weight_of(layer: nn.Module) -> str:
    return "gamma" if isinstance(layer, LayerScale2d) else "weight"


def hook(kind: str, answer: Callable[..., Any]) -> Attach:
    def attach(parent: nn.Module, name: str) -> None:
        getattr(parent.get_submodule(name), f"register_{kind}_hook")(answer)

    return attach


def replace_forward(parent: nn.Module, name: str) -> None:
    layer = parent.get_submodule(name)
    old = layer.forward
    layer.forward = lambda *args: old(*args) * 2 + 1


def replace_forward_as_accelerate(parent: nn.Module, name: str) -> None:
    layer: Any = parent.get_submodule(name)
    layer._old_forward = layer.forward

    def new_forward(module: Any, *args: Any) -> Any:
        return module._old_forward(*args) * 2 + 1

    layer.forward = functools.update_wrapper(functools.partial(new_forward, layer), layer.forward)


def derive(parent: nn.Module, name: str) -> None:
    """Make the layer one of a class that adds something, as the layers of adapters are."""
    layer = parent.get_submodule(name)
    kind: Any = type(layer)

    def forward(self: Any, *args: Any) -> Any:
        return kind.forward(self, *args) * 2 + 1

    layer.__class__ = type(f"Adapted{kind.__name__}", (kind,), {"forward": forward})


class Adapter(nn.Module):
    """Stands in the place of a layer, holds it and shows its attributes."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["base"], name)

    def forward(self, *args: Any) -> Any:
        return self.base(*args) * 2 + 1


def wrap(parent: nn.Module, name: str) -> None:
    layer = parent.get_submodule(name)
    if isinstance(parent, nn.Sequential):
        parent[int(name)] = Adapter(layer)
    else:
        setattr(parent, name, Adapter(layer))


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 1.5 * weight


def parametrize_weight(parent: nn.Module, name: str) -> None:
    layer = parent.get_submodule(name)
    parametrize.register_parametrization(layer, weight_of(layer), Scaled())


def prune_weight(parent: nn.Module, name: str) -> None:
    layer = parent.get_submodule(name)
    prune.random_unstructured(layer, weight_of(layer), 0.5)


def drop_parameter(parent: nn.Module, name: str) -> None:
    layer = parent.get_submodule(name)
    weight = layer.get_parameter(weight_of(layer)).detach().clone()
    delattr(layer, weight_of(layer))
    setattr(layer, weight_of(layer), weight)


def norm_weight(norm: Callable[[nn.Module], Any]) -> Attach:
    return lambda parent, name: norm(parent.get_submodule(name))


ANY: dict[str, Attach] = {
    "forward hook": hook("forward", lambda m, args, y: 2 * y + 1),
    "pre hook": hook("forward_pre", lambda m, args: (args[0] * 2, *args[1:])),
    "backward hook": hook("full_backward", lambda *_: None),
    "backward pre hook": hook("full_backward_pre", lambda *_: None),
    "replaced": replace_forward,
    "accelerate": replace_forward_as_accelerate,
    "subclass": derive,
    "adapter": wrap,
}
WITH_WEIGHT: dict[str, Attach] = {
    "parametrized": parametrize_weight,
    "pruned": prune_weight,
    "no parameter": drop_parameter,
}
WITH_MATRIX: dict[str, Attach] = {
    "old weight norm": norm_weight(nn.utils.weight_norm),
    "old spectral norm": norm_weight(nn.utils.spectral_norm),
    "weight norm": norm_weight(parametrizations.weight_norm),
    "spectral norm": norm_weight(parametrizations.spectral_norm),
}
ATTACHMENTS = {**ANY, **WITH_WEIGHT, **WITH_MATRIX}


def beside() -> nn.Module:
    """A network in which `convattn.replace` put operators beside convolutions."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    )
    convattn.replace(model, lambda conv: GLMix(3, 8, slots=4), where="0", keep=True)
    convattn.replace(model, "xvolution", where="3", keep=True)
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5),
    "acmix_resnet": lambda: convattn.create_model("acmix_resnet_nano", num_classes=5),
    "xvolution_resnet": lambda: convattn.create_model("xvolution_resnet_nano", num_classes=5),
    "glnet": lambda: convattn.create_model("glnet_nano", num_classes=5, layer_scale=0.1),
    "swin": lambda: convattn.create_model("acmix_swin_nano", num_classes=5),
    "san": lambda: convattn.create_model("acmix_san_nano", num_classes=5),
    "beside": beside,
}

x = torch.randn(1, 3, 32, 32, dtype=torch.float64)


@functools.cache
def trained(network: str) -> nn.Module:
    """Norm statistics, layer scales and factors are random: no zero and no one hides a mistake."""
    return randomise(NETWORKS[network]()).double().eval().requires_grad_(False)


@functools.cache
def deployed(network: str) -> nn.Module:
    return convattn.reparameterize(trained(network))


@functools.cache
def foldable(network: str) -> list[str]:
    """Name the layers of a network that its deployed form changes, or lacks."""
    after = dict(deployed(network).named_modules())
    names = []
    for name, layer in trained(network).named_modules():
        before = dict(layer.named_parameters(recurse=False))
        if not before or isinstance(layer, ACmix | ConvBeside):  # whose factors have a test below
            continue
        now = dict(after[name].named_parameters(recurse=False)) if name in after else {}
        if before.keys() != now.keys() or any(
            not torch.equal(v, now[k]) for k, v in before.items()
        ):
            names.append(name)
    return names


def around(network: str) -> list[str]:
    """Name the modules that hold layers that fold."""
    names = {name.rpartition(".")[0] for name in foldable(network)}
    return sorted(name for name in names if name)


def first_of_each_kind(network: str, names: list[str]) -> list[str]:
    firsts: dict[tuple[Any, ...], str] = {}
    for name in names:
        parent, _, own = name.rpartition(".")
        layers = (trained(network).get_submodule(n) for n in (parent, name))
        firsts.setdefault((*map(type, layers), own), name)
    return list(firsts.values())


def changed(network: str, name: str, attachment: str) -> nn.Module:
    model = copy.deepcopy(trained(network))
    parent, _, own = name.rpartition(".")
    torch.manual_seed(0)
    ATTACHMENTS[attachment](model.get_submodule(parent), own)
    return model.eval()


def reparameterized(model: nn.Module, **options: Any) -> tuple[nn.Module, str]:
    """Return the deployed form, and the one warning about what was left, or "" without one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = convattn.reparameterize(model, **options)
    messages = [str(w.message) for w in caught if "reparameterize left" in str(w.message)]
    assert len(messages) <= 1
    return result, "".join(messages)


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


every_layer = pytest.mark.parametrize(
    "which", [first_of_each_kind, pytest.param(lambda _, names: names, marks=pytest.mark.slow)],
    ids=["kinds", "all"],
)  # fmt: skip


@every_layer
@pytest.mark.parametrize("attachment", ATTACHMENTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_layer_that_has_something_attached_is_left_and_named(network, attachment, which):
    for name in which(network, foldable(network)):
        layer = trained(network).get_submodule(name)
        if attachment in WITH_MATRIX and layer.get_parameter(weight_of(layer)).dim() < 2:
            continue
        model = changed(network, name, attachment)
        result, message = reparameterized(model)
        with torch.no_grad():
            assert relative_error(result(x), model(x)) < 1e-10, name
        # torch.fx looks into an adapter: there the norm follows a sum
        if attachment != "adapter" or network not in ("resnet", "beside"):
            assert f" {name}: left, " in message, (name, message)
        assert norms(result) <= norms(deployed(network)) + 2, name  # the rest is folded


@every_layer
@pytest.mark.parametrize("attachment", ANY)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_module_around_layers_may_have_something_attached(network, attachment, which):
    for name in which(network, around(network)):
        model = changed(network, name, attachment)
        with torch.no_grad():
            expected = model(x)
        for inplace in (False, True):
            result, _ = reparameterized(model, inplace=inplace)
            with torch.no_grad():
                assert relative_error(result(x), expected) < 1e-10, name
