"""Weights are saved and loaded in the formats of timm, of the Hugging Face hub and of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from timm.models import load_checkpoint, save_for_hf
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import convattn

SIZE = (2, 3, 48, 32)

pytestmark = pytest.mark.parametrize("name", convattn.list_models("*_nano"))


@pytest.mark.parametrize("safe", [False, True], ids=["bin", "safetensors"])
def test_a_folder_of_the_hub_gives_the_model_back(name, safe, build, tmp_path):
    model, x = build(name, num_classes=5), torch.randn(SIZE)
    save_for_hf(model, tmp_path, safe_serialization=safe)
    again: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert (again.num_classes, again.pretrained_cfg["architecture"]) == (5, name)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_a_folder_of_the_hub_starts_other_classes_channels_and_pyramids(name, build, tmp_path):
    model, x = build(name, num_classes=5), torch.randn(SIZE)
    save_for_hf(model, tmp_path, safe_serialization=True)
    source = f"local-dir:{tmp_path}"
    tuned: Any = convattn.create_model(source, pretrained=True, num_classes=3, in_chans=1).eval()
    grey = x[:, :1]
    assert tuned(grey).shape == (2, 3)
    torch.testing.assert_close(  # one channel counts as three equal ones
        tuned.forward_features(grey),
        model.forward_features(grey.expand(-1, 3, -1, -1)),
        rtol=1e-3,
        atol=1e-4,
    )
    pyramid: Any = convattn.create_model(source, pretrained=True, features_only=True).eval()
    chosen = pyramid.feature_info.out_indices
    maps = model.forward_intermediates(x, indices=chosen, intermediates_only=True)
    torch.testing.assert_close(pyramid(x), maps, rtol=0, atol=0)


def test_timm_loads_its_own_kinds_of_checkpoint(name, build, tmp_path):
    model, x = build(name, num_classes=5), torch.randn(SIZE)
    other = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    torch.save(
        {"state_dict": other, "state_dict_ema": model.state_dict()}, tmp_path / "train.pth.tar"
    )
    for path in tmp_path.iterdir():
        again = convattn.create_model(name, num_classes=5).eval()
        load_checkpoint(again, str(path), use_ema=True)
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_a_checkpoint_with_scalars_for_parameters_loads(name, build):
    model, x = build(name, num_classes=5), torch.randn(SIZE)
    scalars = ("alpha", "beta", "slot_scale")
    state = {k: v.squeeze() if k.endswith(scalars) else v for k, v in model.state_dict().items()}
    again = convattn.create_model(name, num_classes=5).eval()
    again.load_state_dict(state)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_every_parameter_can_be_sharded(name, build, alone):
    """FSDP2 refuses parameters without a dimension."""
    model, x = build(name, num_classes=5), torch.randn(SIZE)
    expected = model(x)
    expected.square().sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    fully_shard(model, mesh=alone)
    sharded = model(x)
    sharded.square().sum().backward()
    torch.testing.assert_close(sharded, expected)
    for parameter_name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        assert isinstance(parameter.grad, DTensor)
        torch.testing.assert_close(parameter.grad.to_local(), gradients[parameter_name])
