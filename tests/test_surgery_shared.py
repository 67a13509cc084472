"""`replace` on shared modules, shared weights and operators."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import convattn
from tests.test_surgery import small


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = self.first
        self.other = nn.Conv2d(8, 8, 3, padding=1)


@pytest.mark.parametrize("keep", [False, True])
def test_a_shared_convolution_becomes_one_shared_operator(keep):
    model = _Shared()
    report = convattn.replace(model, "glmix", where="*", keep=keep)
    assert list(report.replaced) == ["first", "second", "other"]
    assert model.first is model.second
    assert model.first is not model.other


def test_a_shared_convolution_is_skipped_if_only_one_name_matches():
    model = _Shared()
    report = convattn.replace(model, "glmix", where="[so]*")
    assert list(report.replaced) == ["other"]
    assert report.skipped == {"second": "it is also 'first', which `where` does not match"}
    assert model.first is model.second


def test_a_weight_that_two_convolutions_share_is_not_split():
    first, second, other = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
    second.weight = first.weight
    model = nn.Sequential(first, second, other)
    report = convattn.replace(model, "acmix", where="[12]")
    assert list(report.replaced) == ["2"]
    assert report.skipped["1"].startswith("'0' has the same weight")
    kept: Any = nn.Sequential(first, second)
    convattn.replace(kept, "acmix", where="*", keep=True)
    assert kept[0].conv.weight is kept[1].conv.weight


def test_convolutions_inside_operators_are_skipped():
    model = nn.Sequential(small(), *small())
    convattn.replace(model, "acmix", where="0.*")
    report = convattn.replace(model, "acmix", where="*", keep=True)
    assert list(report.replaced) == ["1"]
    assert report.skipped["0.0.q_proj"] == "it is a part of ACmix '0.0'"
    with pytest.raises(ValueError, match="part of ConvBeside '1'"):
        convattn.replace(model, "acmix", where="1.conv")
