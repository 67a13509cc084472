from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convattn.explain.slots import last_of_each_size, slot_maps
from convattn.layers.glmix import GLMix, GLMixBlock
from tests.tolerances import TOLERANCE

VARIANTS: dict[str, dict[str, Any]] = {
    "soft": {},
    "rows and columns": {"slots": (2, 3)},
    "learned": {"slot_init": "learned"},
    "kmeans": {"clustering": "kmeans"},
    "static": {"clustering": "static"},
    "sequential": {"branches": "sequential"},
    "global": {"branches": "global"},
}


def mixer_of(variant: str) -> GLMix:
    mixer = GLMix(8, **{"num_heads": 2, "slots": (2, 2), **VARIANTS[variant]})
    with torch.no_grad():
        mixer.slot_scale.fill_(3.0)  # far from uniform, so that an error shows
    return mixer


def block() -> GLMixBlock:
    return GLMixBlock(8, num_heads=2, slots=(2, 2))


def number_of_slots(variant: str) -> int:
    return 6 if variant == "rows and columns" else 4


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.stages = nn.Sequential(block(), block(), nn.AvgPool2d(2), block())

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))


class WithContext(nn.Module):
    def __init__(self, mixer: GLMix, context: Tensor) -> None:
        super().__init__()
        self.mixer = mixer
        self.context = context

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x, context=self.context)


@pytest.mark.parametrize("variant", VARIANTS)
def test_maps_are_the_weights_of_the_slots_in_the_mixer(variant: str) -> None:
    mixer = mixer_of(variant)
    x, context = torch.randn(2, 2, 8, 5, 7).unbind()
    # slots that differ from each other, so that every weight counts
    slots = torch.randn(2, number_of_slots(variant), 8)
    mixer.slot_attn.register_forward_hook(lambda *_: slots)
    y = mixer(x, context)
    if mixer.branches == "parallel":
        y = y - mixer.local(x)  # the global branch alone
    maps = slot_maps(WithContext(mixer, context), x)["mixer"]
    expected = torch.einsum("bmhw,bmc->bchw", maps, slots)
    tolerance = TOLERANCE[torch.float32]
    torch.testing.assert_close(expected, y, rtol=tolerance["rtol"], atol=tolerance["atol"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_maps_have_a_weight_for_every_slot_and_sum_to_one(variant: str) -> None:
    mixer = mixer_of(variant)
    maps = slot_maps(nn.Sequential(mixer), torch.randn(2, 8, 5, 7))["0"]
    assert maps.shape == (2, number_of_slots(variant), 5, 7)
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, 5, 7))
    assert maps.std(dim=1).max() > 0.05


def test_every_mixer_of_a_model_is_named_in_order() -> None:
    maps = slot_maps(Stages(), torch.randn(1, 3, 8, 8))
    assert list(maps) == ["stages.0.mixer", "stages.1.mixer", "stages.3.mixer"]
    assert list(last_of_each_size(maps)) == ["stages.1.mixer", "stages.3.mixer"]


def test_the_model_keeps_its_mode() -> None:
    model = Stages().train()
    model.get_submodule("stages.1").eval()
    x = torch.randn(1, 3, 8, 8)
    before = model(x)
    slot_maps(model, x)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert model.training
    assert model.get_submodule("stages.0.mixer").training
    assert not model.get_submodule("stages.1.mixer").training


def test_hooks_are_removed_when_the_model_fails() -> None:
    model = Stages()
    with pytest.raises(RuntimeError):
        slot_maps(model, torch.randn(1, 5, 8, 8))
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert model.training


def test_a_model_without_slots_has_no_maps() -> None:
    local = GLMix(8, branches="local")
    assert slot_maps(local, torch.randn(1, 8, 4, 4)) == {}


def test_half_precision_models_give_maps_in_float32() -> None:
    maps = slot_maps(Stages().bfloat16(), torch.randn(1, 3, 8, 8).bfloat16())
    assert {m.dtype for m in maps.values()} == {torch.float32}
