"""A layer that has something attached is left as it is, and named; the rest is folded."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torchvision
from timm.layers import LayerScale2d
from timm.models.byobnet import RepVggBlock
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.models.resnet import BasicBlock

import convattn
from convattn import ACmix, GLMix, GLMixBlock, XVolution
from convattn.layers.attention.block import AttentionBlock
from convattn.layers.attention.choice import ATTENTIONS
from convattn.layers.conv2d import ConvBeside
from convattn.models.glnet import GLNet
from tests.golden import relative_error
from tests.layers.properties import randomise

Attach = Callable[[nn.Module, str], None]  # the module that holds the layer, and the layer's name


def weight_of(layer: nn.Module) -> str:
    return "gamma" if isinstance(layer, LayerScale2d) else "weight"


def scaled(y: Any) -> Any:
    """Change a layer's output: a map, or a map and tokens."""
    return tuple(map(scaled, y)) if isinstance(y, tuple) else 2 * y + 1


def hook(kind: str, answer: Callable[..., Any]) -> Attach:
    def attach(parent: nn.Module, name: str) -> None:
        getattr(parent.get_submodule(name), f"register_{kind}_hook")(answer)

    return attach


def replace_forward(parent: nn.Module, name: str) -> None:
    layer = parent.get_submodule(name)
    old = layer.forward
    layer.forward = lambda *args: scaled(old(*args))


def replace_forward_as_accelerate(parent: nn.Module, name: str) -> None:
    layer: Any = parent.get_submodule(name)
    layer._old_forward = layer.forward

    def new_forward(module: Any, *args: Any) -> Any:
        return scaled(module._old_forward(*args))

    layer.forward = functools.update_wrapper(functools.partial(new_forward, layer), layer.forward)


def derive(parent: nn.Module, name: str) -> None:
    """Make the layer one of a class that adds something, as the layers of adapters are."""
    layer = parent.get_submodule(name)
    kind: Any = type(layer)

    def forward(self: Any, *args: Any) -> Any:
        return scaled(kind.forward(self, *args))

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
        return scaled(self.base(*args))


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
    "forward hook": hook("forward", lambda m, args, y: scaled(y)),
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
    "deit": lambda: convattn.create_model("acmix_deit_nano", num_classes=5),
    "pvt": lambda: convattn.create_model("pvt_nano", num_classes=5),
    "beside": beside,
}

# Layers without which everything folds: another layer takes over the shift of the norm.
NOT_NEEDED = {("beside", "3.conv")}

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


@functools.cache
def kinds(names: Callable[[str], list[str]]) -> dict[tuple[Any, ...], tuple[str, str]]:
    """Return the first layer of each kind, over all networks: network and name."""
    firsts: dict[tuple[Any, ...], tuple[str, str]] = {}
    for network in NETWORKS:
        for name in names(network):
            parent, _, own = name.rpartition(".")
            layers = (trained(network).get_submodule(n) for n in (parent, name))
            kind = (*map(type, layers), own.strip("0123456789"))
            firsts.setdefault(kind, (network, name))
    return firsts


def of_each_kind(network: str, names: Callable[[str], list[str]]) -> list[str]:
    return [name for where, name in kinds(names).values() if where == network]


def everywhere(network: str, names: Callable[[str], list[str]]) -> list[str]:
    return names(network)


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


def parameters_of(model: nn.Module, name: str) -> dict[str, Tensor] | None:
    """Return copies of the parameters of a layer, or of what it is in; None if there is none."""
    layer = dict(model.named_modules()).get(name)
    return layer and {n: p.detach().clone() for n, p in layer.named_parameters()}


def stays(before: dict[str, Tensor] | None, model: nn.Module, name: str) -> bool:
    """Whether a layer has the parameters that it had."""
    after = parameters_of(model, name)
    if not before or not after or before.keys() != after.keys():
        return False
    return all(torch.equal(value, after[n]) for n, value in before.items())


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


# The first layer of each kind, and the slow product with every layer of every network.
layers = pytest.mark.parametrize(
    "which", [of_each_kind, pytest.param(everywhere, marks=pytest.mark.slow)]
)


def some(names: dict[str, Attach], quick: Sequence[str]) -> list[Any]:
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@layers
@pytest.mark.parametrize(
    "attachment",
    some(
        ATTACHMENTS,
        (
            "forward hook",
            "backward hook",
            "replaced",
            "subclass",
            "adapter",
            "parametrized",
            "old weight norm",
        ),
    ),
)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_layer_that_has_something_attached_is_left_and_named(network, attachment, which):
    for name in which(network, foldable):
        layer = trained(network).get_submodule(name)
        if attachment in WITH_MATRIX and layer.get_parameter(weight_of(layer)).dim() < 2:
            continue
        model = changed(network, name, attachment)
        before = parameters_of(model, name)
        with torch.no_grad():
            expected = model(x)
        result, message = reparameterized(model, inplace=which is of_each_kind)
        with torch.no_grad():
            assert relative_error(result(x), expected) < 1e-10, name
        named = f" {name}: left, " in message or (network, name) in NOT_NEEDED
        assert named or not stays(before, result, name), (name, message)
        assert norms(result) - norms(deployed(network)) <= 2, name  # the rest is folded


@pytest.mark.parametrize("attachment", some(ANY, ("forward hook", "replaced", "adapter")))
@pytest.mark.parametrize("network", NETWORKS)
def test_a_module_around_layers_may_have_something_attached(network, attachment):
    for name in of_each_kind(network, around):
        model = changed(network, name, attachment)
        if attachment in ("adapter", "subclass") and network == "deit" and name.endswith(".attn"):
            continue  # which has no forward_tokens
        with torch.no_grad():
            expected = model(x)
        inside = f"{name}.base." if attachment == "adapter" else f"{name}."
        names = [n for n in foldable(network) if n.startswith(f"{name}.")]
        layers = [inside + n.removeprefix(f"{name}.") for n in names]
        before = {layer: parameters_of(model, layer) for layer in layers}
        for inplace in (False, True):
            result, message = reparameterized(model, inplace=inplace)
            with torch.no_grad():
                assert relative_error(result(x), expected) < 1e-10, name
            kept = [layer for layer in layers if stays(before[layer], result, layer)]
            assert not kept or f" {name}" in message, (name, kept, message)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_without_attachments_folds_without_a_warning(network):
    result, message = reparameterized(trained(network))
    assert not message
    assert not reparameterized(result)[1]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_replaced_forward_still_runs(inplace):
    """As accelerate and adapters replace it: the norm after the layer stays."""
    model: Any = copy.deepcopy(trained("resnet"))
    replace_forward(model.layer4[0], "conv2")
    with torch.no_grad():
        expected = model(x)
        result, message = reparameterized(model, inplace=inplace)
        assert relative_error(result(x), expected) < 1e-10
    assert message == (
        "reparameterize left 1 layer as it is:\n"
        "  layer4.0.conv2: left, its forward was replaced on the instance"
    )
    assert norms(result) == 1


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["stages.0.blocks.0.mlp.fc2", "stages.0.blocks.0.pos_embed"])
@pytest.mark.parametrize("attachment", ["old weight norm", "old spectral norm", "pruned"])
def test_a_weight_that_a_hook_computes_is_left_to_the_hook(attachment, name, inplace):
    """The tensor that a hook computes can neither be assigned nor, with a gradient, be copied."""
    model = copy.deepcopy(trained("glnet")).requires_grad_(True)
    parent, _, own = name.rpartition(".")
    ATTACHMENTS[attachment](model.get_submodule(parent), own)
    expected = model.eval()(x).detach()
    result, message = reparameterized(model, inplace=inplace)
    assert relative_error(result(x).detach(), expected) < 1e-10
    assert f" {name}: left, " in message


def test_hooks_of_all_modules_and_of_state_dicts_do_not_stop_the_folding():
    model = copy.deepcopy(trained("resnet"))
    for module in model.modules():
        module.register_state_dict_post_hook(lambda *_: None)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        result, message = reparameterized(model)
    finally:
        handle.remove()
    assert not message
    assert norms(result) == 0


@pytest.mark.parametrize("factor", ["alpha", "beta"])
@pytest.mark.parametrize("way", [parametrize.register_parametrization, None])
def test_a_factor_of_acmix_that_is_computed_stays(way, factor):
    layer = randomise(ACmix(8, window_size=3)).double().eval()
    if way is None:
        prune.custom_from_mask(layer, factor, torch.zeros(1))
    else:
        way(layer, factor, Scaled())
    maps = torch.randn(1, 8, 5, 4, dtype=torch.float64)
    expected = layer(maps).detach()
    model = nn.Sequential(layer, randomise(nn.BatchNorm2d(8)).double()).eval()
    with torch.no_grad():
        normed = model(maps)
        result, message = reparameterized(model, inplace=True)
        assert relative_error(result(maps), normed) < 1e-10
        assert relative_error(layer(maps), expected) < 1e-10
    assert f"computes its {factor}" in message


def test_the_factor_of_an_operator_beside_a_convolution_stays_if_it_is_computed():
    model = copy.deepcopy(trained("beside"))
    parametrize.register_parametrization(model.get_submodule("0"), "gamma", Scaled())
    with torch.no_grad():
        expected = model(x)
        result, message = reparameterized(model)
        assert relative_error(result(x), expected) < 1e-10
    assert " 0: left, Scaled computes its gamma" in message


def test_a_layer_with_two_places_folds_in_neither():
    model: Any = copy.deepcopy(trained("glnet"))
    first, second = model.stages[2].blocks
    second.mlp, second.pos_embed = first.mlp, first.pos_embed
    with torch.no_grad():
        expected = model(x)
        result, message = reparameterized(model)
        assert relative_error(result(x), expected) < 1e-10
    assert "left 2, it has 2 places in the model: " in message
    assert " stages.2.blocks.0.pos_embed" in message
    assert " stages.2.blocks.0.mlp" in message


def test_reparameterize_of_a_timm_block_with_attachments_is_not_called():
    model = randomise(nn.Sequential(RepVggBlock(3, 3), RepVggBlock(3, 3))).double().eval()
    replace_forward(model.get_submodule("0.conv_kxk"), "conv")
    with torch.no_grad():
        expected = model(x)
        result, message = reparameterized(model)
        assert relative_error(result(x), expected) < 1e-10
    assert " 0.conv_kxk.conv: left, its forward was replaced" in message
    assert hasattr(model.get_submodule("1"), "conv_kxk")
    assert not hasattr(result.get_submodule("1"), "conv_kxk")


class Squared(GLMixBlock):
    """Mixes in its own way, and inherits what folds the layer scale."""

    def mix(self, u: Tensor, context: Tensor) -> Tensor:
        return super().mix(u, context).square()


def test_a_scale_after_what_a_subclass_computes_stays():
    block = randomise(Squared(8, head_dim=4, slots=4, layer_scale=0.1)).double().eval()
    maps = torch.randn(1, 8, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = block(maps)
        assert relative_error(convattn.reparameterize(block)(maps), expected) < 1e-10


def test_a_hook_that_is_removed_after_deployment_leaves_a_model_that_runs():
    layer = randomise(ACmix(8, window_size=3)).double().eval()
    handle = layer.q_proj.register_forward_hook(lambda *_: None)
    maps = torch.randn(1, 8, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(maps)
        result, message = reparameterized(layer, inplace=True)
        handle.remove()
        assert relative_error(result(maps), expected) < 1e-10
    assert " q_proj: left, it has hooks (1 forward hook)" in message


def test_a_norm_that_follows_no_layer_gives_no_warning():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))
    model[2].register_forward_hook(lambda *_: None)
    assert not reparameterized(model)[1]


def test_the_warning_is_short():
    model = nn.Sequential()
    for i in range(12):
        model.extend([nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)])
        for _ in range(i + 1):
            model[-2].register_forward_hook(lambda *_: None)
    message = reparameterized(model)[1]
    assert message.startswith("reparameterize left 12 layers as they are:\n")
    assert message.endswith("\n  and 4 more reasons")
    assert len(message.splitlines()) == 10


def test_a_replaced_forward_of_a_block_with_tokens_still_calls_its_norms():
    model: Any = copy.deepcopy(trained("pvt"))
    block = model.stages[0].blocks[0]
    block.forward = lambda x, tokens=None: (x + 0.5 * block.norm2(x), tokens)
    with torch.no_grad():
        expected = model(x)
        result, message = reparameterized(model, inplace=True)
        assert relative_error(result(x), expected) < 1e-10
    assert " stages.0.blocks.0: left, its forward was replaced" in message


class ReluACmix(ACmix):
    def _mix(self, *paths: Any) -> Tensor:
        return super()._mix(*paths).relu()


class ReluXVolution(XVolution):
    def _attend(self, *projected: Any) -> Tensor:
        return super()._attend(*projected).relu()


class ReluGLMix(GLMix):
    def _mix(self, *maps: Any) -> Tensor:
        return super()._mix(*maps).relu()


@pytest.mark.parametrize("kind", [ReluACmix, ReluXVolution, ReluGLMix])
def test_an_operator_that_overrides_a_step_keeps_what_follows_the_step(kind):
    model = nn.Sequential(kind(8), nn.BatchNorm2d(8))
    randomise(model).double().eval()
    maps = torch.randn(1, 8, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = model(maps)
        result, message = reparameterized(model)
        assert relative_error(result(maps), expected) < 1e-10
    assert f" 0: left, {kind.__name__} has a _" in message


class MaximumGLNet(GLNet):
    """Pools in its own way, before the head."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return super().forward_head(x.amax((2, 3), keepdim=True), pre_logits)


class MaximumHead(Adapter):
    def forward(self, *args: Any, **options: Any) -> Any:
        return self.base(args[0].amax((2, 3), keepdim=True), *args[1:], **options)


@pytest.mark.parametrize("derived", [True, False])
def test_a_network_with_a_pool_of_its_own_pools_the_normed_map(derived):
    model: Any = copy.deepcopy(trained("glnet"))
    if derived:
        model.__class__ = MaximumGLNet
    else:
        model.head = MaximumHead(model.head)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)  # maps of 2 x 2
    with torch.no_grad():
        expected = model(images)
        assert relative_error(reparameterized(model)[0](images), expected) < 1e-10


class Renamed(ACmix):
    """Overrides what computes no outputs."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, window_size=3)

    def extra_repr(self) -> str:
        return "renamed"

    def train(self, mode: bool = True) -> Renamed:
        return super().train(mode)


def test_a_subclass_that_overrides_no_step_folds():
    model = randomise(nn.Sequential(Renamed(8), nn.BatchNorm2d(8))).double().eval()
    result, message = reparameterized(model)
    assert not message
    assert norms(result) == 0


def test_replaced_methods_that_compute_nothing_do_not_stop_the_folding():
    """Frozen norms ignore ``train``; accelerate replaces ``to`` and ``cuda``."""
    model: Any = copy.deepcopy(trained("resnet"))
    for module in model.modules():
        for name in ("train", "to", "cuda"):
            setattr(module, name, lambda *_, module=module: module)
    result, message = reparameterized(model, inplace=True)
    assert not message
    assert norms(result) == 0
    with torch.no_grad():
        assert relative_error(result(x), trained("resnet")(x)) < 1e-10


def test_a_norm_that_cannot_leave_training_stays():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).train()
    norm: Any = model[1]
    norm.train = lambda mode=True: norm
    result, message = reparameterized(model, inplace=True)
    assert norms(result) == 1
    assert " 1: left, its train was replaced" in message


def test_a_replaced_forward_of_a_whole_network_is_named_although_its_blocks_fold():
    model: Any = copy.deepcopy(trained("resnet"))
    model.forward = functools.partial(model.forward)
    with torch.no_grad():
        expected = model(x)
        result, message = reparameterized(model, inplace=True)
        assert relative_error(result(x), expected) < 1e-10
    assert isinstance(result.get_submodule("bn1"), nn.BatchNorm2d)
    assert norms(result) == 1
    assert " the model: left, its forward was replaced" in message


class LowRank(nn.Module):
    """Adds a convolution of low rank to the layer that it replaces."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        sizes = base.kernel_size, base.stride, base.padding
        self.down = nn.Conv2d(base.in_channels, 2, *sizes)
        self.up = nn.Conv2d(2, base.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize(
    ("network", "name"), [("resnet", "layer1.0.conv1"), ("glnet", "stages.0.blocks.0.mlp.fc1")]
)
def test_an_adapter_in_the_place_of_a_convolution_is_named(network, name):
    model = copy.deepcopy(trained(network))
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, LowRank(model.get_submodule(name)))
    randomise(model).double().eval()
    with torch.no_grad():
        expected = model(x)
        result, message = reparameterized(model)
        assert relative_error(result(x), expected) < 1e-10
    assert f" {name}: left, it is a LowRank, which may compute something else" in message


def test_an_adapter_around_an_activation_is_named():
    block = randomise(GLMixBlock(8, head_dim=4, slots=4)).double().eval()
    wrap(block.mlp, "act")
    maps = torch.randn(1, 8, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = block(maps)
        result, message = reparameterized(block)
        assert relative_error(result(maps), expected) < 1e-10
    assert " mlp.act: left, it is a Adapter" in message


@pytest.mark.parametrize("mix", ["learned", "attention"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_an_adapter_around_the_attention_of_acmix_computes(attention, mix):
    """Trained, deployed, and with a norm behind: nothing reads through the adapter."""
    part = randomise(ACmix(8, attention=attention, mix=mix)).double().eval()
    model: Any = nn.Sequential(part, randomise(nn.BatchNorm2d(8)).double()).eval()
    maps = torch.randn(1, 8, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        attn = part.attn
        q, k, v = part.projections(attn.prepare(maps), attn.context(attn.prepare(maps)))
        added = attn.restore(attn(q, k, v) + 1) * (1.0 if mix == "attention" else part.alpha)
        plain = part(maps)
        wrap(part, "attn")
        assert relative_error(part(maps), plain + added) < 1e-10
        expected = model(maps)
        result, message = reparameterized(model)
        assert relative_error(result(maps), expected) < 1e-10
    assert " 0.attn: left, it is a Adapter" in message


def test_an_adapter_without_forward_tokens_takes_no_tokens():
    layer = ACmix(8, attention="global")
    wrap(layer, "attn")
    with pytest.raises(NotImplementedError, match="Adapter does not define forward_tokens"):
        layer.forward_tokens(torch.randn(1, 8, 4, 4), torch.randn(1, 1, 8))


def test_a_layer_that_may_take_a_faster_path_keeps_its_hooks():
    block = randomise(AttentionBlock(8, head_dim=4)).double().eval()
    seen: list[Tensor] = []
    block.attn.qkv.register_forward_hook(lambda m, args, y: seen.append(y))
    maps = torch.randn(1, 8, 5, 4, dtype=torch.float64)
    result, message = reparameterized(block, inplace=True)
    result(maps)
    assert len(seen) == 1
    assert " attn.qkv: left, it has hooks" in message
