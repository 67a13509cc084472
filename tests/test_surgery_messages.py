"""Messages of `replace` about names, options and skipped convolutions."""

from __future__ import annotations

import re
from typing import Any

import pytest
from torch import nn

import convattn
from convattn import ACmix
from convattn.layers import ACmixConv2d
from tests.test_surgery import narrow_resnet, small


def test_the_error_names_operators_that_were_replaced_before():
    model = narrow_resnet()
    convattn.replace(model, "acmix", where="layer[34].*.conv2")
    with pytest.raises(
        ValueError,
        match=r"called 'layer3\.0\.conv\[2\]': 'layer3\.0\.conv2' is already replaced by ACmix$",
    ):
        convattn.replace(model, "glmix", where="layer3.0.conv[2]")
    with pytest.raises(ValueError, match=r"replaced by ACmix \(one of 2 that it matches\)$"):
        convattn.replace(model, "acmix", where="layer[34].*.conv2")
    convattn.replace(model, "glmix", where="layer1.0.conv2", keep=True)
    with pytest.raises(ValueError, match=r"GLMix is already added to 'layer1\.0\.conv2'$"):
        convattn.replace(model, "glmix", where="layer1.0.conv2", keep=True)


@pytest.mark.parametrize("where", ["layer3", "layer?"])
def test_the_name_of_a_block_does_not_match_its_convolutions(where):
    with pytest.raises(
        ValueError, match=rf"for its \d+ convolutions use '{re.escape(where)}\.\*';"
    ):
        convattn.replace(narrow_resnet(), "acmix", where=where)
    assert convattn.replace(narrow_resnet(), "acmix", where=f"{where}.*").replaced


@pytest.mark.parametrize("name", ["ACmix", "acmix", "GLMix", "XVolution", "X-volution"])
def test_names_of_operators_ignore_case(name):
    model = small()
    convattn.replace(model, name, where="0")
    assert type(model[0]).__name__.lower() == name.lower().replace("-", "")


@pytest.mark.parametrize("operator", ["acmix", "ACmix", ACmix, ACmixConv2d])
def test_options_are_checked_before_operators_are_built(operator):
    lazy = nn.Sequential(nn.LazyConv2d(8, 3))  # from_conv2d would fail on it
    with pytest.raises(TypeError, match=r"no option 'heads'; did you mean 'num_heads'.*'mix'"):
        convattn.replace(lazy, operator, where="*", heads=4)
    for name in ("stride", "dilation", "in_chans", "out_chans"):
        options: Any = {name: 2}
        with pytest.raises(TypeError, match=f"no option {name!r}: it is that of the convolution"):
            convattn.replace(lazy, operator, where="*", **options)


def test_the_report_groups_skipped_convolutions_by_reason():
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(10)))
    model.extend(small())
    convattn.replace(model, "acmix", where="10")
    model.extend(small())
    report = convattn.replace(model, "glmix", where="*")
    assert len(report.skipped) > 14
    lines = str(report).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("  skipped 10, an operator mixes all channels")
    assert lines[2].endswith(": 0, 1, 2, 3, 4, 5, 6, 7 and 2 more")
    assert lines[3].startswith("  skipped 6, parts of operators: 10.q_proj, 10.k_proj, ")


class _Wider(ACmix):
    def __init__(self, in_chans: int, out_chans: int, factor: int = 1, **options: Any) -> None:
        super().__init__(in_chans, out_chans, **options)
        self.factor = factor


def test_options_of_a_subclass_that_passes_options_on():
    model: Any = small()
    convattn.replace(model, _Wider, where="0", factor=3, num_heads=2)
    assert (model[0].factor, model[0].attn.num_heads) == (3, 2)
    with pytest.raises(TypeError, match="did you mean 'factor'"):
        convattn.replace(small(), _Wider, where="0", factors=3)
