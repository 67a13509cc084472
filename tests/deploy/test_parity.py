from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convattn
from convattn.deploy import parity
from tests.layers.properties import randomise


class Scaled(nn.Module):
    """Returns what nests and what is no number, one of it times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"maps": [x, self.factor * x], "labels": x.long(), "name": "scaled"}


def test_parity_is_the_largest_difference_of_all_outputs():
    x = torch.randn(3, 4)
    assert parity(Scaled(1.0), x, deployed=Scaled(1.5)) == pytest.approx(0.5)
    assert parity(Scaled(2.0), x, deployed=Scaled(2.0)) == 0
    assert parity(Scaled(0.0), 0 * x, deployed=Scaled(0.0)) == 0


def test_a_backbone_has_a_default_input_and_keeps_its_mode():
    model: Any = randomise(convattn.create_model("acmix_resnet_nano", in_chans=4)).double()
    model.bn1.eval()
    assert 0 < parity(model) < 1e-12
    assert model.training
    assert not model.bn1.training


def test_a_wrong_deployed_form_has_a_large_difference():
    model = randomise(convattn.create_model("glnet_nano")).double()
    wrong: Any = convattn.reparameterize(model)
    with torch.no_grad():
        wrong.stem[0].bias += 0.01
    assert parity(model, deployed=wrong) > 1e-6


def test_errors_name_the_missing_input_or_the_shapes():
    with pytest.raises(
        ValueError, match=r"Conv2d has no pretrained_cfg .* parity\(model, torch.randn"
    ):
        parity(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match=r"shapes \(1, 4, 3, 3\) and \(1, 5, 3, 3\)"):
        parity(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 3, 3), deployed=nn.Conv2d(3, 5, 1))
    with pytest.raises(ValueError, match="returns no floating-point tensor"):
        parity(nn.Identity(), torch.zeros(2, dtype=torch.long))


class Pair(nn.Module):
    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> list[Tensor]:
        return [factor * x for factor in self.factors]


@pytest.mark.parametrize("factors", [(1.5, float("nan")), (float("nan"), 1.5)])
def test_a_nan_in_any_output_gives_nan(factors):
    assert math.isnan(parity(Pair(1.0, 1.0), torch.randn(3), deployed=Pair(*factors)))


def test_a_different_number_of_outputs_raises():
    with pytest.raises(ValueError, match="returns 2 tensors and its deployed form 1"):
        parity(Pair(1.0, 1.0), torch.randn(3), deployed=Pair(1.0))
