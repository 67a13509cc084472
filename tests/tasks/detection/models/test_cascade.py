"""The cascade with heads whose outputs are fixed, so that the results can be written by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from convattn.tasks.detection.models.cascade import (
    DELTA_WEIGHTS,
    IOUS,
    CascadeMaskRCNN,
    CascadeRoIHeads,
)
from convattn.tasks.detection.models.roi_heads import RegionHeads
from tests.tasks.detection.models.scenes import images, small, targets

SIZE = [(100, 100)]
OBJECT = torch.tensor([[20.0, 20, 40, 40]])


class Pool(nn.Module):
    """Keeps the regions that it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Any, boxes: list[Tensor], shapes: Any) -> Tensor:
        self.seen.append(torch.cat(boxes).clone())
        return torch.zeros(sum(map(len, boxes)), 1)


class Fixed(nn.Module):
    """Gives every region the same class logits and deltas."""

    def __init__(self, logits: list[float], deltas: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.deltas = nn.Parameter(torch.tensor(deltas).flatten())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits.repeat(len(x), 1), self.deltas.repeat(len(x), 1)


class FixedMask(nn.Module):
    """Gives every region the same mask logit."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, x: Tensor) -> Tensor:
        return self.logit.expand(len(x), 3, 28, 28)


STILL = [[0.0] * 4] * 3


def cascade(
    logits: list[list[float]],
    deltas: list[list[list[float]]],
    masks: tuple[float, float, float] = (0.0, 0.0, 0.0),
    *,
    giou: bool = True,
) -> CascadeRoIHeads:
    """Three stages for two classes and the background."""
    stages = [
        RegionHeads(
            Pool(),
            nn.Identity(),
            Fixed(logits[i], deltas[i]),
            IOUS[i],
            IOUS[i],
            512,
            0.25,
            DELTA_WEIGHTS[i],
            0.05,
            0.5,
            100,
            mask_roi_pool=Pool(),
            mask_head=nn.Identity(),
            mask_predictor=FixedMask(masks[i]),
        )
        for i in range(3)
    ]
    return CascadeRoIHeads(stages, giou=giou)


def seen(heads: CascadeRoIHeads) -> list[set[tuple[float, ...]]]:
    """The regions of each stage, rounded to two digits."""
    pools: list[Any] = [heads.get_submodule(f"stages.{i}.box_roi_pool") for i in range(3)]
    return [{tuple(round(v, 2) for v in r) for r in p.seen[-1].tolist()} for p in pools]


def objects(boxes: Tensor = OBJECT, label: int = 2) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), 100, 100, dtype=torch.uint8)
    masks[:, 20:40, 20:40] = 1
    return {
        "boxes": boxes,
        "labels": torch.full((len(boxes),), label),
        "crowd_boxes": torch.zeros(0, 4),
        "masks": masks,
    }


def test_evaluation_averages_logits_and_takes_the_last_boxes():
    logits = [[0.0, 2.0, 1.0], [0.0, 1.0, 4.0], [3.0, 0.0, 1.0]]
    # A shift of one side in x: 1 in units of the weights 10, 20 and 30.
    right = [[0.0] * 4, [10.0, 0, 0, 0], [0.0] * 4]
    down = [[0.0] * 4, [0.0] * 4, [0.0, 20, 0, 0]]
    last = [[0.0] * 4, [0, -15.0, 0, 0], [0.0, -30, 0, 0]]
    heads = cascade(logits, [right, down, last]).eval()
    found, losses = heads({}, [OBJECT], SIZE)
    assert losses == {}
    # Stage 1 moves by class 1, stage 2 by class 2: the likeliest class but the background.
    assert seen(heads) == [{(20, 20, 40, 40)}, {(40, 20, 60, 40)}, {(40, 40, 60, 60)}]
    mean = torch.tensor(logits).mean(0).softmax(0)
    order = mean[1:].argsort(descending=True)
    assert found[0]["labels"].tolist() == (order + 1).tolist() == [2, 1]
    torch.testing.assert_close(found[0]["scores"], mean[1:][order])
    expected = torch.tensor([[40.0, 20, 60, 40], [40, 30, 60, 50]])
    torch.testing.assert_close(found[0]["boxes"], expected)


def test_evaluation_averages_the_masks_of_the_stages():
    heads = cascade([[0.0, 0, 5]] * 3, [STILL] * 3, masks=(-2.0, 0.0, 3.0)).eval()
    found, _ = heads({}, [OBJECT, OBJECT.repeat(2, 1)[:0]], SIZE * 2)
    mean = sum(1 / (1 + math.exp(-v)) for v in (-2.0, 0.0, 3.0)) / 3
    assert found[0]["masks"].shape == (1, 1, 28, 28)
    torch.testing.assert_close(found[0]["masks"], torch.full((1, 1, 28, 28), mean))
    assert found[1]["masks"].shape == (0, 1, 28, 28)


def test_no_region_gives_no_object():
    heads = cascade([[0.0, 0, 5]] * 3, [STILL] * 3).eval()
    found, _ = heads({}, [OBJECT[:0], OBJECT[:0]], SIZE * 2)
    for each in found:
        assert each["boxes"].shape == (0, 4)
        assert each["masks"].shape == (0, 1, 28, 28)


def test_ground_truth_is_added_in_every_stage_and_not_passed_on():
    moved = [[0.0] * 4, [0.0] * 4, [3.0, 0, 0, 0]]
    heads = cascade([[0.0, 0, 0]] * 3, [moved, STILL, STILL])
    region = torch.tensor([[22.0, 20, 42, 40]])
    heads({}, [region], SIZE, [objects()])
    # The region moves by 0.3 of its width; the box of the object would move to (26, 20, 46, 40).
    assert seen(heads) == [
        {(22, 20, 42, 40), (20, 20, 40, 40)},
        {(28, 20, 48, 40), (20, 20, 40, 40)},
        {(28, 20, 48, 40), (20, 20, 40, 40)},
    ]


def test_background_regions_move_by_the_likeliest_class_and_others_by_their_label():
    deltas = [[0.0] * 4, [0.0, 10, 0, 0], [1.0, 0, 0, 0]]
    heads = cascade([[9.0, 1, 0]] * 3, [deltas, STILL, STILL])
    regions = torch.tensor([[22.0, 20, 42, 40], [60.0, 60, 70, 70], [90.0, 90, 98, 99]])
    heads({}, [regions], SIZE, [objects(label=2)])
    _, second, _ = seen(heads)
    # The last region leaves the image of 100 pixels and is clipped.
    assert second == {(24, 20, 44, 40), (60, 70, 70, 80), (90, 99, 98, 100), (20, 20, 40, 40)}


def test_refinement_has_no_gradient():
    heads = cascade([[0.0, 0, 0]] * 3, [[[1.0] * 4] * 3, STILL, STILL])
    region = torch.tensor([[22.0, 20, 42, 40]])
    _, losses = heads({}, [region], SIZE, [objects()])
    (losses["box_2"] + losses["box_3"]).backward()
    first: Any = heads.get_submodule("stages.0.box_predictor")
    second: Any = heads.get_submodule("stages.1.box_predictor")
    assert first.deltas.grad is None
    assert second.deltas.grad.abs().sum() > 0


def test_stages_match_at_rising_iou():
    # IoU with the object: 2/3, and 0.54.
    regions = torch.tensor([[24.0, 20, 44, 40], [26.0, 20, 46, 40]])
    heads = cascade([[0.0, 0, 0]] * 3, [STILL] * 3)
    _, losses = heads({}, [regions], SIZE, [objects()])
    pools: list[Any] = [heads.get_submodule(f"stages.{i}.mask_roi_pool") for i in range(3)]
    assert [len(p.seen[-1]) for p in pools] == [3, 2, 1]  # the box of the object included
    assert losses["cls_1"] > 0


def test_losses_are_the_papers_with_the_weights_of_the_stages():
    logits = [[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [2.0, 1.0, 0.0]]
    deltas = [[[0.0] * 4, [9.0] * 4, [0.5, -0.3, 0.2, 0.1]]] * 3
    regions = torch.tensor([[22.0, 20, 42, 40], [60.0, 60, 80, 80]])
    heads = cascade(logits, deltas, masks=(1.0, 0.0, 0.0))
    _, losses = heads({}, [regions], SIZE, [objects()])
    labels = torch.tensor([2, 0, 2])
    cls = F.cross_entropy(torch.tensor(logits[0]).repeat(3, 1), labels)
    torch.testing.assert_close(losses["cls_1"], cls)
    decoded = torch.stack([decode(regions[0], deltas[0][2]), decode(OBJECT[0], deltas[0][2])])
    giou = generalized_box_iou_loss(decoded, OBJECT.repeat(2, 1), reduction="sum")
    torch.testing.assert_close(losses["box_1"], 10 * giou / 3)
    torch.testing.assert_close(losses["cls_2"], torch.tensor(0.5 * math.log(3)))
    torch.testing.assert_close(losses["mask_2"], torch.tensor(0.5 * math.log(2)))
    torch.testing.assert_close(losses["mask_3"], torch.tensor(0.25 * math.log(2)))


def decode(region: Tensor, deltas: list[float]) -> Tensor:
    """The first stage's refinement of a region, from the formulas."""
    x1, y1, x2, y2 = region.tolist()
    width, height = x2 - x1, y2 - y1
    x = (x1 + x2) / 2 + deltas[0] / 10 * width
    y = (y1 + y2) / 2 + deltas[1] / 10 * height
    w, h = width * math.exp(deltas[2] / 5), height * math.exp(deltas[3] / 5)
    return torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])


def test_the_other_head_has_the_smooth_l1_loss_of_the_deltas():
    region = torch.tensor([[22.0, 20, 42, 40], [60.0, 60, 80, 80]])
    heads = cascade([[0.0] * 3] * 3, [[[0.5, 0, 0, 0]] * 3] * 3, giou=False)
    _, losses = heads({}, [region], SIZE, [objects()])
    # Deltas to the object: -2 / 20 * 10 = -1 for the region, and 0 for the box of the object.
    error = torch.tensor([1.5, 0.5])
    expected = F.smooth_l1_loss(error, torch.zeros(2), reduction="sum") / 3
    torch.testing.assert_close(losses["box_1"], expected)


def test_an_image_without_objects_has_losses_of_zero_for_boxes_and_masks():
    heads = cascade([[0.0, 1, 0]] * 3, [STILL] * 3)
    region = torch.tensor([[22.0, 20, 42, 40]])
    _, losses = heads({}, [region], SIZE, [objects(OBJECT[:0])])
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(losses[f"{name}_{i}"] == 0 for name in ("box", "mask") for i in (1, 2, 3))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in heads.parameters())


@pytest.mark.parametrize("box_head", ["conv", "linear"])
def test_heads_of_boxes(box_head):
    model = small("cascade_mask_rcnn", head_depth=2, box_head=box_head)
    assert isinstance(model, CascadeMaskRCNN)
    losses = model(images(), targets())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    heads = [model.get_submodule(f"roi_heads.stages.{i}") for i in range(3)]
    norms = [[m for m in h.modules() if isinstance(m, nn.BatchNorm2d)] for h in heads]
    assert [len(n) for n in norms] == ([2] * 3 if box_head == "conv" else [0] * 3)
    deltas = [h.get_submodule("box_predictor.bbox_pred") for h in heads]
    assert [d.out_features for d in deltas] == ([16] * 3 if box_head == "conv" else [4] * 3)
    with torch.no_grad():
        model.eval()(images())
