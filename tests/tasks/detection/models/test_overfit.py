from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import box_iou

from tests.tasks.detection.models.scenes import small, target

BOXES = [[8.0, 8, 40, 36], [50.0, 12, 84, 60], [16.0, 56, 56, 88]]
STEPS = 60


def scene() -> Tensor:
    """Three rectangles in three colours."""
    image = 0.1 * torch.rand(1, 3, 96, 96)
    for channel, (x1, y1, x2, y2) in enumerate(BOXES):
        image[0, channel, int(y1) : int(y2), int(x1) : int(x2)] += 1
    return (image - 0.3) / 0.4


@pytest.mark.slow
@pytest.mark.parametrize("method", ["retinanet", "mask_rcnn", "cascade_mask_rcnn"])
def test_detector_learns_an_image_by_heart(method):
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"channels": 32, "head_depth": 1}
    if method != "retinanet":
        sizes |= {"head_width": 128, "samples": 32, "rpn_samples": 64, "train_proposals": 64}
    model = small(method, **sizes)
    image, truth = scene(), target(BOXES, [0, 1, 2], (96, 96))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        sum(model(image.repeat(2, 1, 1, 1), [truth, truth]).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        decay.step()
    with torch.no_grad():
        found = model.eval()(image)[0]
    best = {int(label): i for i, label in reversed(list(enumerate(found["labels"])))}
    assert set(best) == {0, 1, 2}
    for label, i in best.items():
        box = found["boxes"][i : i + 1]
        assert box_iou(box, torch.tensor(BOXES[label : label + 1])) > 0.7
        assert found["scores"][i] > 0.5
        if model.has_masks:
            pasted = paste_masks_in_image(found["masks"][i : i + 1], box, (96, 96))[0, 0] > 0.5
            mask = torch.as_tensor(truth["masks"][label]) > 0
            assert (pasted & mask).sum() / (pasted | mask).sum() > 0.7
