"""Every choice of an operator can be scripted: TorchScript compiles only what a module has."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from convattn import ACmix, GLMix, GLMixBlock, XVolution
from convattn.layers.acmix import MIXES, SHIFTS
from convattn.layers.attention_choice import ATTENTIONS
from convattn.ops.reference import glmix as reference
from tests.compare import assert_close
from tests.layers.properties import randomise

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


def assert_scripts(module: nn.Module, channels: int) -> None:
    module = randomise(module).eval()
    scripted = torch.jit.script(module)
    for size in [(9, 11), (16, 20)]:
        x = torch.randn(2, channels, *size)
        assert_close(scripted(x), module(x), torch.float32)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("mix", MIXES)
def test_acmix_with_any_attention_and_mix(attention, mix):
    assert_scripts(ACmix(32, attention=attention, mix=mix), 32)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_acmix_that_widens_and_strides(attention):
    assert_scripts(ACmix(16, 32, attention=attention, stride=2, fc_bias=True), 16)


@pytest.mark.parametrize("shift", SHIFTS)
def test_acmix_with_any_shift(shift):
    assert_scripts(ACmix(16, shift=shift), 16)


@pytest.mark.parametrize("attention", ["pssa", "sa"])
@pytest.mark.parametrize("weighting", [True, False])
def test_xvolution(attention, weighting):
    assert_scripts(XVolution(16, 32, attention=attention, stride=2, weighting=weighting), 16)


@pytest.mark.parametrize(
    "layer",
    [
        *(ACmix(16, attention=name, fc_bias=True) for name in ATTENTIONS),
        ACmix(32, num_heads=8, shift="fixed"),
        *(XVolution(16, attention=name, weighting=False) for name in ("pssa", "sa")),
    ],
)
def test_the_deployed_forms(layer):
    deployed = randomise(layer).eval()
    deployed.reparameterize()
    assert_scripts(deployed, layer.in_chans)


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"slot_init": "learned"},
        {"clustering": "kmeans"},
        {"clustering": "static"},
        {"branches": "local"},
        {"branches": "global"},
        {"branches": "sequential"},
        {"layer_scale": 0.5, "drop_path": 0.5, "mlp_dwconv": True},
    ],
    ids=str,
)
def test_glmix_block(choice: dict[str, Any]):
    assert_scripts(GLMixBlock(16, head_dim=8, slots=4, **choice), 16)


def test_glmix_takes_its_path_for_both_steps(monkeypatch):
    calls = []
    for name in ("soft_clustering", "dispatch"):
        step = mock.Mock(side_effect=getattr(reference, name))
        monkeypatch.setattr(reference, name, step)
        calls.append(step)
    torch.jit.script(GLMix(8, slots=4, num_heads=2, backend="reference"))(torch.randn(1, 8, 5, 6))
    assert [step.call_count for step in calls] == [1, 1]
