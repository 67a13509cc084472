"""`replace` skips convolutions whose parameters something else keeps in a list."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.placement_types import Replicate
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import convattn
from tests.test_surgery import small


@pytest.fixture
def processes(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class _Engine(nn.Module):
    """Like the engines of other libraries: it controls when gradients are reduced."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def no_sync(self) -> None: ...


def _named(model: nn.Module) -> nn.Module:
    engine: Any = type("DeepSpeedEngine", (nn.Module,), {})()
    engine.module = model
    return engine


SYNCHRONISING = [DistributedDataParallel, fully_shard, replicate, _Engine, _named]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("wrap", [*SYNCHRONISING, AveragedModel, ModelEmaV3])
def test_a_wrapped_model_is_not_changed(wrap, keep, processes):
    model = wrap(small())
    before = list(model.modules())
    with pytest.raises(ValueError, match="call replace before"):
        convattn.replace(model, "acmix", where="*", keep=keep)
    assert list(model.modules()) == before


def test_a_sharded_convolution_is_skipped(processes):
    model: Any = small()
    mesh = init_device_mesh("cpu", (1,))
    whole = distribute_tensor(model[0].weight.data, mesh, [Replicate()])
    model[0].weight = nn.Parameter(whole)
    with pytest.raises(ValueError, match=r"its weight is a DTensor.*call replace before"):
        convattn.replace(model, "acmix", where="0")


def test_convolutions_outside_a_wrapper_are_replaced(processes):
    model = nn.ModuleDict({"teacher": DistributedDataParallel(small()), "student": small()})
    report = convattn.replace(model, "acmix", where="*")
    assert list(report.replaced) == ["student.0"]
    assert "DistributedDataParallel" in report.skipped["teacher.module.0"]


def test_convolutions_in_wrappers_without_a_list_are_replaced():
    x = torch.randn(2, 8, 9, 7)
    for wrap in (nn.DataParallel, lambda model: torch.compile(model, backend="eager")):
        model: Any = wrap(small())
        report = convattn.replace(model, "acmix", where="*.0")
        assert len(report.replaced) == 1
        model(x).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("what", "hold"),
    [
        ("its weight", lambda net: [net[0].weight]),
        ("its bias", lambda net: {"decay": (net[0].bias,)}),
        ("it", lambda net: [net[0]]),
        ("its weight", lambda net: torch.optim.SGD(net.parameters(), 0.1)),
        ("its weight", lambda net: [torch.optim.SGD(net.parameters(), 0.1)]),
    ],
)
def test_a_convolution_in_a_list_of_a_module_is_skipped(what, hold, keep):
    net: Any = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    outer: Any = nn.Sequential(net, nn.Conv2d(8, 8, 3, padding=1))
    outer.kept = hold(net)
    report = convattn.replace(outer, "acmix", where="*", keep=keep)
    assert list(report.replaced) == ["1"]
    assert report.skipped["0.0"].startswith(f"{what} is also in 'kept' of Sequential")


def test_lists_that_hold_themselves_are_read_once():
    net: Any = small()
    net.names = ["a", 3, None]
    net.names.append(net.names)
    assert convattn.replace(net, "acmix", where="0").replaced


@pytest.mark.parametrize("parametrize", [True, False])
def test_a_shared_parametrized_weight_is_not_split(parametrize):
    first, second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
    second.weight = first.weight
    net = nn.Sequential(first, second)
    if parametrize:
        nn.utils.parametrizations.spectral_norm(first)
        nn.utils.parametrizations.spectral_norm(second)
    with pytest.raises(ValueError, match=r"'1.* has the same weight"):
        convattn.replace(net, "acmix", where="0")


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("wrap", SYNCHRONISING)
def test_a_wrapped_model_is_not_folded(wrap, inplace, processes):
    model = wrap(small())
    with pytest.raises(ValueError, match=r"keeps a list .*the model inside"):
        convattn.reparameterize(nn.Sequential(model), inplace=inplace)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
