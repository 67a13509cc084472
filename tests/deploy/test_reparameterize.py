"""Deployed forms of networks of any library: exact, or left as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import convattn
from convattn.deploy import parity
from convattn.layers.conv2d import ConvBeside
from tests.layers.properties import randomise

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "torchvision resnet": torchvision.models.resnet18,
    "torchvision mobilenet": torchvision.models.mobilenet_v3_small,
    "torchvision densenet": torchvision.models.densenet121,
    "torchvision shufflenet": torchvision.models.shufflenet_v2_x0_5,
    "timm resnet-d": lambda: timm.create_model("resnet18d"),
    "timm maps": lambda: timm.create_model("resnet18", features_only=True),
    "timm efficientnet": lambda: timm.create_model("efficientnet_b0"),  # norms with activations
    "timm repvgg": lambda: timm.create_model("repvgg_a0"),  # its blocks re-parameterise
    "timm levit": lambda: timm.create_model("levit_128s"),  # its layers have a fuse()
}
# Norms that no layer alone comes before: DenseNet's are before a ReLU; LeViT's is its own matter.
KEPT = {"torchvision densenet": 62, "timm levit": 4}

x = torch.randn(2, 3, 64, 64, dtype=torch.float64)


def trained(model: nn.Module) -> Any:
    """Norms and factors are random, so that nothing is hidden by a zero or a one."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomise(module)
        if isinstance(module, ConvBeside):
            nn.init.normal_(module.gamma)
    return model.double().eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


class Block(nn.Module):
    """A convolution, a norm, and what a test does with them."""

    def __init__(self, run: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def block(run: Callable[[Any, Tensor], Any]) -> Any:
    return trained(Block(run))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_other_libraries_fold_exactly(name):
    model = trained(NETWORKS[name]())
    inputs = torch.randn(1, 3, 224, 224, dtype=torch.float64) if "levit" in name else x
    deployed = convattn.reparameterize(model)
    assert type(deployed) is type(model)
    assert parity(model, inputs, deployed=deployed) < 1e-12
    assert norms(deployed) == KEPT.get(name, 0) < norms(model) + (name == "timm levit")


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("operator", ["acmix", "xvolution", "glmix"])
@pytest.mark.parametrize(
    "network", [torchvision.models.resnet18, lambda: timm.create_model("resnet18")]
)
def test_changed_networks_fold_exactly(network, operator, keep):
    model = network()
    convattn.replace(model, operator, where="layer[34].*.conv2", keep=keep)
    trained(model)
    deployed = convattn.reparameterize(model)
    assert parity(model, x, deployed=deployed) < 1e-11
    assert norms(deployed) == 0


def test_a_single_operator_and_one_inside_other_modules_fold():
    for model in (
        convattn.XVolution(3, 4),
        nn.DataParallel(convattn.create_model("glnet_nano")),
        nn.ModuleDict({"a": convattn.ACmix(4)})["a"],
    ):
        channels = 4 if isinstance(model, convattn.ACmix) else 3
        inputs = torch.randn(1, channels, 40, 36, dtype=torch.float64)
        assert parity(trained(model), inputs) < 1e-11
        assert norms(convattn.reparameterize(model)) == 0


def test_the_model_is_left_as_it_is():
    model = convattn.create_model("acmix_resnet_nano").train()
    before = copy.deepcopy(model.state_dict())
    deployed = convattn.reparameterize(model)
    assert model.training
    assert not any(m.training for m in deployed.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_in_place_the_model_itself_is_changed():
    model = trained(convattn.create_model("acmix_resnet_nano"))
    y = model(x)
    assert convattn.reparameterize(model.train(), inplace=True) is model
    assert not model.training
    assert norms(model) == 0
    torch.testing.assert_close(model(x), y, rtol=1e-9, atol=1e-9)


def test_a_second_reparameterize_changes_nothing():
    deployed = convattn.reparameterize(trained(NETWORKS["torchvision resnet"]()))
    again = convattn.reparameterize(deployed).state_dict()
    assert again.keys() == deployed.state_dict().keys()
    assert all(torch.equal(value, again[key]) for key, value in deployed.state_dict().items())


def test_a_frozen_network_stays_frozen():
    deployed = convattn.reparameterize(NETWORKS["torchvision resnet"]().requires_grad_(False))
    assert not any(p.requires_grad for p in deployed.parameters())


STAY = {
    "used twice": lambda m, x: m.norm(m.conv(x)) + m.conv(x),
    "norm elsewhere too": lambda m, x: m.norm(m.conv(x)) + m.norm(x),
    "two norms": lambda m, x: m.norm(m.conv(x)) + m.other(m.conv(x)),
    "not alone": lambda m, x: (y := m.conv(x)) + m.norm(y),
    "returned": lambda m, x: (y := m.conv(x), m.norm(y)),
    "norm first": lambda m, x: m.conv(m.norm(x)),
    "weight read": lambda m, x: m.norm(m.conv(x)) * m.conv.weight.mean(),
    "not traced": lambda m, x: m.norm(m.conv(x)) if x.sum() > 0 else m.conv(x),
}
FOLD = {
    "plain": lambda m, x: m.norm(m.conv(x)),
    "both twice": lambda m, x: m.norm(m.conv(x)) + m.norm(m.conv(-x)),
    "between others": lambda m, x: m.norm(m.conv(x.relu())).relu() * x,
}


@pytest.mark.parametrize("name", STAY)
def test_a_norm_stays_where_it_does_not_always_follow_its_layer_alone(name):
    model = block(STAY[name])
    deployed = convattn.reparameterize(model)
    assert norms(deployed) == 2
    assert parity(model, x, deployed=deployed) == 0


@pytest.mark.parametrize("name", FOLD)
def test_a_norm_folds_where_it_always_follows_its_layer_alone(name):
    model = block(FOLD[name])
    deployed = convattn.reparameterize(model)
    assert isinstance(deployed.norm, nn.Identity)
    assert parity(model, x, deployed=deployed) < 1e-12


def test_parts_of_an_untraceable_model_are_folded():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Block(FOLD["plain"])

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x) if x.sum() > 0 else self.part(-x)

    model = trained(Branching())
    deployed = convattn.reparameterize(model)
    assert isinstance(deployed.part.norm, nn.Identity)
    assert parity(model, x, deployed=deployed) < 1e-12


def test_shared_modules_fold_once_or_stay():
    operator = convattn.XVolution(3, num_heads=1)
    model = trained(nn.Sequential(operator, nn.ReLU(), operator))
    assert parity(model, x) < 1e-12
    shared = nn.Conv2d(3, 3, 1)
    model = trained(nn.Sequential(shared, nn.BatchNorm2d(3), shared, nn.BatchNorm2d(3)))
    deployed = convattn.reparameterize(model)
    assert norms(deployed) == 2
    assert parity(model, x, deployed=deployed) == 0


def test_a_layer_shared_by_separately_traced_parts_is_not_folded():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(FOLD["plain"]), Block(FOLD["plain"])
            self.second.conv = self.first.conv

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)) if x.sum() > -1e9 else x

    model = trained(Branching())
    deployed = convattn.reparameterize(model)
    assert norms(deployed) == 4
    assert parity(model, x, deployed=deployed) == 0


def test_a_norm_after_a_linear_layer_is_not_folded():
    """Its channels are the last axis, those of the norm are the second one, and as many."""
    model = trained(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm2d(3)))
    deployed = convattn.reparameterize(model)
    assert norms(deployed) == 1
    assert parity(model, x[..., :3], deployed=deployed) == 0


@pytest.mark.parametrize("kind", [FrozenBatchNorm2d, FrozenBatchNormAct2d])
def test_frozen_norms_fold(kind):
    norm = kind(3)
    for value in norm.buffers():
        nn.init.uniform_(value, 0.5, 1.5)
    model = trained(nn.Sequential(nn.Conv2d(3, 3, 1), norm))
    deployed = convattn.reparameterize(model)
    assert not any(isinstance(m, kind) for m in deployed.modules())
    assert parity(model, x, deployed=deployed) < 1e-12


def test_tied_weights_are_untied_by_folding():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    model[2].weight = model[0].weight
    assert parity(trained(model), x) < 1e-12


@pytest.mark.parametrize("name", ["conv", "norm"])
def test_modules_with_a_hook_are_not_folded(name):
    model, seen = block(FOLD["plain"]), []
    model.get_submodule(name).register_forward_hook(lambda m, i, y: seen.append(y))
    model(x)
    deployed = convattn.reparameterize(model)
    deployed(x)
    assert torch.equal(seen[0], seen[-1])
    assert norms(deployed) == 2


def test_layers_inside_a_module_with_a_hook_are_folded():
    part = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    model = trained(nn.Sequential(part, nn.BatchNorm2d(3)))
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda m, i, y: seen.append(y))
    model(x)
    deployed = convattn.reparameterize(model)
    deployed(x)
    torch.testing.assert_close(seen[0], seen[-1])
    assert isinstance(deployed[0][1], nn.Identity)
    assert isinstance(deployed[1], nn.BatchNorm2d)


def test_tracing_does_not_store_tensors_in_the_model():
    def keep(m: Any, x: Tensor) -> Tensor:
        m.last = m.norm(m.conv(x))
        return m.last

    deployed = convattn.reparameterize(block(keep))
    assert not hasattr(deployed, "last")
    assert isinstance(deployed.norm, nn.Identity)


def test_a_reparameterize_method_with_arguments_is_not_called():
    class Encoder(nn.Module):
        def reparameterize(self, mean: Tensor, variance: Tensor) -> Tensor:
            raise AssertionError

    convattn.reparameterize(nn.Sequential(Encoder()))


def test_norms_with_batch_statistics_are_not_folded():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    assert norms(convattn.reparameterize(model)) == 1


def test_lazy_layers_are_not_folded():
    model = nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d())
    assert convattn.reparameterize(model, inplace=True)(x.float()).shape == (2, 4, 64, 64)


def test_ultralytics_folds_its_own():
    class Detector(Block):
        def forward_fuse(self, x: Tensor) -> Tensor:
            return self.conv(x)

    assert norms(convattn.reparameterize(Detector(FOLD["plain"]))) == 2


def test_errors_say_what_to_do():
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got str"):
        convattn.reparameterize("glnet_nano")  # type: ignore[type-var]
    script = torch.jit.trace(nn.Conv2d(3, 3, 1), x.float())
    with pytest.raises(TypeError, match="call reparameterize on the model first"):
        convattn.reparameterize(script)
    model = nn.Conv2d(3, 3, 1)
    model.cache = model.weight * 2
    with pytest.raises(ValueError, match=r"Conv2d cannot be copied .*; use inplace=True"):
        convattn.reparameterize(model)
    assert convattn.reparameterize(model, inplace=True) is model
