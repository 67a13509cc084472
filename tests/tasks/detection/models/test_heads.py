from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from convattn.tasks.detection.models.heads import BoxPredictor, PyramidRoIAlign, RetinaHead


@pytest.mark.parametrize("shapes", [[(200, 320)], [(320, 320)], [(33, 320)]])
def test_regions_are_pooled_at_the_strides_whatever_the_padding(shapes):
    maps = {str(i): torch.rand(1, 2, 320 // s, 320 // s) for i, s in enumerate((4, 8, 16, 32))}
    boxes = [torch.tensor([[10.0, 8, 60, 30], [0, 0, 150, 150], [0, 0, 300, 300]])]
    pooled = PyramidRoIAlign([4, 8, 16, 32], 7)(maps, boxes, shapes)
    for i, (level, stride) in enumerate([(0, 4), (1, 8), (2, 16)]):
        region = [boxes[0][i : i + 1]]
        expected = roi_align(
            maps[str(level)], region, 7, spatial_scale=1 / stride, sampling_ratio=0
        )
        torch.testing.assert_close(pooled[i : i + 1], expected)


def test_no_region_gives_an_empty_result():
    maps = {str(i): torch.rand(2, 2, 64 // s, 64 // s) for i, s in enumerate((4, 8, 16, 32))}
    pooled = PyramidRoIAlign([4, 8, 16, 32], 7)(maps, [torch.zeros(0, 4)] * 2, [(64, 64)] * 2)
    assert pooled.shape == (0, 2, 7, 7)


def test_depth_of_a_retina_head_is_the_number_of_its_convolutions():
    for depth in (1, 4):
        head = RetinaHead(8, 9, 3, depth)
        assert len(head.classification_head.conv) == len(head.regression_head.conv) == depth


def test_agnostic_deltas_are_the_same_for_all_classes():
    logits, deltas = BoxPredictor(8, 4, agnostic=True)(torch.rand(5, 8))
    assert logits.shape == (5, 4)
    assert deltas.shape == (5, 16)
    by_class = deltas.view(5, 4, 4)
    assert torch.equal(by_class, by_class[:, :1].expand(5, 4, 4))
    assert deltas.unique(dim=0).shape[0] == 5
