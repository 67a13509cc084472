from __future__ import annotations

import pytest
import torch
from torch import nn

import convattn
from convattn.models import count_macs, count_parameters, paper_row, paper_rows

PUBLISHED = [name for name in convattn.list_models() if paper_row(name)]


def test_every_published_model_has_its_row():
    assert [name for name in convattn.list_models() if "nano" not in name] == PUBLISHED
    named = [row.name for row in paper_rows() if row.name]
    assert sorted(named) == PUBLISHED


def test_rows_say_accuracy_and_source():
    row = paper_row("glnet_4g_tklb")
    assert row is not None
    assert (row.top1, row.training) == (84.4, "token labelling")
    assert "2411.14429" in row.source
    assert paper_row("resnet18") is None
    assert all(row.source and row.macs_g > 0 and 70 < row.top1 < 90 for row in paper_rows())


QUICK = ("acmix_resnet26", "glnet_stl")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in PUBLISHED],
)
def test_cost_is_the_papers_to_within_5_percent(name):
    row = paper_row(name)
    assert row is not None
    assert count_macs(name) == pytest.approx(row.macs_g * 1e9, rel=0.05)
    assert count_parameters(name) == pytest.approx(row.params_m * 1e6, rel=0.05)


def test_macs_of_a_convolution_and_a_linear_layer_are_their_formulas():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 4 * 6, 5))
    assert count_macs(model, (3, 4, 6)) == 3 * 8 * 9 * 24 + 8 * 24 * 5
    assert count_parameters(model) == (3 * 9 + 1) * 8 + (8 * 24 + 1) * 5


def test_macs_of_acmix_are_the_formula_of_the_paper():
    C, K, H, W = 32, 7, 6, 10
    expected = (3 * C * C + 2 * K**2 * C + 3 * 9 * C + 81 * C) * H * W
    position = 2 * (C // 4) * H * W
    assert count_macs(convattn.ACmix(C), (C, H, W)) == expected + position


def test_counting_neither_moves_nor_runs_the_model():
    model = convattn.create_model("glnet_nano")
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert count_macs(model) == count_macs("glnet_nano")
    assert model.training
    assert next(model.parameters()).device == torch.device("cpu")


def test_cost_grows_with_the_image():
    assert count_macs("glnet_nano", (3, 64, 64)) > 2 * count_macs("glnet_nano")
