from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection.rpn import RegionProposalNetwork

from convattn.tasks.detection.models import build_detector
from convattn.tasks.detection.models.cascade import CascadeRoIHeads
from convattn.tasks.detection.models.heads import BoxPredictor, PyramidRoIAlign
from convattn.tasks.detection.models.roi_heads import RegionHeads
from convattn.tasks.detection.models.rpn import ProposalNetwork
from tests.tasks.detection.models.scenes import small

OBJECT = torch.tensor([[10.0, 10, 30, 30]])


def region_heads(samples: int = 512) -> RegionHeads:
    return RegionHeads(
        PyramidRoIAlign([4, 8, 16, 32], 7),
        nn.Flatten(),
        BoxPredictor(49, 3),
        0.5,
        0.5,
        samples,
        0.25,
        None,
        0.05,
        0.5,
        100,
    )


def objects(crowd: list[list[float]]) -> dict[str, torch.Tensor]:
    return {
        "boxes": OBJECT,
        "labels": torch.tensor([2]),
        "crowd_boxes": torch.tensor(crowd).reshape(-1, 4),
    }


def test_regions_inside_a_crowd_are_not_sampled_unless_they_match_an_object():
    regions = torch.tensor([[12.0, 10, 32, 30], [40, 40, 60, 60], [70, 70, 90, 90]])
    crowd = [[0.0, 0, 65, 65]]
    sampled, _, labels, _ = region_heads().select_training_samples([regions], [objects(crowd)])
    found = {tuple(r.tolist()): int(c) for r, c in zip(sampled[0], labels[0], strict=True)}
    assert found == {(12.0, 10, 32, 30): 2, (70.0, 70, 90, 90): 0, (10.0, 10, 30, 30): 2}
    sampled, *_ = region_heads().select_training_samples([regions], [objects([])])
    assert len(sampled[0]) == 4


def test_a_quarter_of_the_samples_are_objects_at_most():
    regions = torch.cat([OBJECT.repeat(50, 1), torch.tensor([[60.0, 60, 80, 80]]).repeat(50, 1)])
    _, _, labels, _ = region_heads(samples=16).select_training_samples([regions], [objects([])])
    assert labels[0].sort().values.tolist() == [0] * 12 + [2] * 4


def test_anchors_inside_a_crowd_are_not_used():
    model = small("faster_rcnn")
    assert isinstance(model.rpn, ProposalNetwork)
    anchors = torch.tensor([[10.0, 10, 31, 30], [40, 40, 60, 60], [70, 70, 90, 90]])
    target = objects([[0.0, 0, 65, 65]])
    labels, boxes = model.rpn.assign_targets_to_anchors([anchors], [target])
    assert labels[0].tolist() == [1, -1, 0]
    plain, _ = RegionProposalNetwork.assign_targets_to_anchors(model.rpn, [anchors], [target])
    assert plain[0].tolist() == [1, 0, 0]
    assert torch.equal(boxes[0][0], OBJECT[0])


def test_object_with_less_than_the_least_iou_has_no_anchor():
    rpn: Any = small("faster_rcnn").get_submodule("rpn")
    anchors = torch.tensor([[0.0, 0, 32, 32], [40, 40, 60, 60]])
    for side, expected in [(16.0, [0, 0]), (20.0, [1, 0])]:  # IoU 0.25 and 0.39
        target = {"boxes": torch.tensor([[4.0, 4, 4 + side, 4 + side]])}
        target |= {"labels": torch.tensor([1]), "crowd_boxes": torch.zeros(0, 4)}
        labels, _ = rpn.assign_targets_to_anchors([anchors], [target])
        assert labels[0].tolist() == expected


class MaskLogits(nn.Module):
    """Gives every region the same mask logits, whose gradient shows the targets."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3, 28, 28))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), 3, 28, 28)


@pytest.mark.parametrize("cascade", [False, True])
def test_mask_targets_are_the_masks_inside_the_regions(cascade):
    predictor = MaskLogits()
    one = region_heads()
    one.mask_roi_pool, one.mask_head = PyramidRoIAlign([4, 8, 16, 32], 14), nn.Identity()
    one.mask_predictor = predictor
    heads = CascadeRoIHeads([one], [1.0]) if cascade else one
    maps = {str(i): torch.rand(1, 1, 128 // s, 128 // s) for i, s in enumerate((4, 8, 16, 32))}
    masks = torch.zeros(1, 128, 128, dtype=torch.uint8)
    masks[:, 10:30, 10:20] = 1  # the left half of the object
    _, losses = heads(maps, [OBJECT], [(128, 128)], [{**objects([]), "masks": masks}])
    losses["mask_1" if cascade else "mask"].backward()
    assert predictor.logits.grad is not None
    # The gradient of the cross-entropy at a logit of 0 is (0.5 - target) / cells.
    targets = 0.5 - predictor.logits.grad[2] * 28 * 28
    assert (targets[:, :14] >= 0.5).all()
    assert (targets[:, 14:] < 0.5).all()
    torch.testing.assert_close(targets, targets.flip(0))


def test_proposals_have_the_papers_numbers_by_default():
    with torch.device("meta"):
        for method, most in [("mask_rcnn", 1000), ("cascade_mask_rcnn", 2000)]:
            model = build_detector(method, "glnet_nano", 3)
            rpn = model.get_submodule("rpn")
            assert isinstance(rpn, ProposalNetwork)
            assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (2000, most)
            rpn.eval()
            assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (1000, 1000)
