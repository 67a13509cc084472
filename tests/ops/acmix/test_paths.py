from __future__ import annotations

import pytest
import torch

from convattn import ops
from convattn.ops.acmix.paths import RULES, folding_pays


@pytest.mark.parametrize(
    ("in_chans", "heads", "options", "path"),
    [
        (64, 4, {}, "dense"),
        (256, 4, {}, "projected"),
        (256, 4, {"alone": True}, "connected"),
        (256, 4, {"stride": 2}, "dense"),
        (192, 6, {}, "connected"),
        (64, 4, {"backend": "grouped"}, "projected"),
    ],
)
def test_the_widths_decide_what_the_convolution_takes(in_chans, heads, options, path):
    sizes = {"head_dim": in_chans // heads, "out_chans": in_chans}
    x = torch.empty(1, in_chans, 3, 3)
    assert ops.convolution_path(x, **sizes, **options) == path
    with ops.use_backend("reference"):
        assert ops.convolution_path(x, **sizes, **options) == "projected"
    assert ops.convolution_path(x.to("meta"), **sizes, **options) == "projected"
    assert all(why for *_, why in RULES)


@pytest.mark.parametrize(
    ("groups", "num_outputs", "stride", "pays"),
    [(12, 4, 1, True), (18, 6, 1, False), (18, 6, 2, True), (24, 8, 3, True), (24, 8, 1, False)],
)
def test_folding_pays_where_it_is_no_more_multiplications(groups, num_outputs, stride, pays):
    folded = groups * num_outputs * 9
    two_layers = groups * 9 * stride**2 + num_outputs * 81
    assert (folded <= two_layers) == pays
    assert folding_pays(groups, num_outputs, 3, stride) == pays
