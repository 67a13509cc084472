from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.tasks.segmentation.models.fcn import FCNHead
from convattn.tasks.segmentation.models.semantic_fpn import SemanticFPNHead
from convattn.tasks.segmentation.models.upernet import PyramidPooling, UperNetHead

WIDTHS, STRIDES = (6, 8, 10, 12), (4, 8, 16, 32)


@pytest.fixture
def maps() -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(2, width, 96 // stride, 160 // stride)
        for width, stride in zip(WIDTHS, STRIDES, strict=True)
    ]


def ready(module: nn.Module) -> Any:
    """Return the module in evaluation mode, its norms with random statistics and weights."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            values: tuple[Any, ...] = (part.weight, part.bias, part.running_mean, part.running_var)
            for value in values:
                nn.init.uniform_(value, 0.5, 1.5)
    return module.eval()


def up(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@torch.no_grad()
def test_semantic_fpn_adds_the_upsampled_levels_of_a_pyramid_without_norms(maps):
    head = ready(SemanticFPNHead(WIDTHS, STRIDES, 5, channels=8, head_channels=7))
    sums = [block(x) for block, x in zip(head.fpn.inner_blocks, maps, strict=True)]
    for i in (2, 1, 0):
        sums[i] = sums[i] + F.interpolate(sums[i + 1], size=sums[i].shape[2:], mode="nearest")
    total: Any = 0
    for i, (x, level) in enumerate(zip(sums, head.levels, strict=True)):
        x = head.fpn.layer_blocks[i](x)
        assert len(level.convs) == max(1, i)
        for conv in level.convs:
            x = conv(x)
            x = up(x, (2 * x.shape[2], 2 * x.shape[3])) if i else x
        total = total + x
    expected = head.classifier(total)
    assert expected.shape == (2, 5, 24, 40)
    torch.testing.assert_close(head(maps), expected)


def test_semantic_fpn_has_convolutions_without_norm_in_the_pyramid():
    head = SemanticFPNHead(WIDTHS, STRIDES, 5)
    kinds = {type(part) for part in head.fpn.modules() if not list(part.children())}
    assert kinds == {nn.Conv2d}
    sizes = [c.kernel_size[0] for c in head.fpn.modules() if isinstance(c, nn.Conv2d)]
    assert sorted(sizes) == [1] * 4 + [3] * 4
    assert head.classifier.in_channels == 128


@torch.no_grad()
def test_upernet_fuses_all_levels_at_the_first_resolution(maps):
    head = ready(UperNetHead(WIDTHS, 5, channels=8))
    top = head.pyramid_pooling(maps[3])
    levels = [lateral(x) for lateral, x in zip(head.laterals, maps[:3], strict=True)]
    levels[2] = levels[2] + up(top, levels[2].shape[2:])
    levels[1] = levels[1] + up(levels[2], levels[1].shape[2:])
    levels[0] = levels[0] + up(levels[1], levels[0].shape[2:])
    levels = [conv(x) for conv, x in zip(head.convs, levels, strict=True)]
    fused = torch.cat([up(x, (24, 40)) for x in (*levels, top)], 1)
    torch.testing.assert_close(head(maps), head.classifier(head.fusion(fused)))


@pytest.mark.parametrize("training", [False, True])
def test_pyramid_pooling_equals_adaptive_pooling(training):
    pooling = ready(PyramidPooling(6, 4, (1, 2, 3, 6)))
    x = torch.randn(2, 6, 7, 11, requires_grad=training)
    parts = [x]
    for scale, branch in zip((1, 2, 3, 6), pooling.branches, strict=True):
        parts.append(up(branch(F.adaptive_avg_pool2d(x, scale)), (7, 11)))
    torch.testing.assert_close(pooling(x), pooling.fusion(torch.cat(parts, 1)))


def test_classifiers_start_near_zero_and_convolutions_have_batch_norms():
    heads: list[Any] = [FCNHead(6, 5), UperNetHead(WIDTHS, 5, channels=8)]
    for head in heads:
        assert 0 < head.classifier.weight.std() < 0.02
        assert not head.classifier.bias.any()
        convs = [m for m in head.modules() if isinstance(m, nn.Conv2d) and m.bias is None]
        norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(convs) == len(norms) > 0
