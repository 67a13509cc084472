from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from tests.tasks.detection.models.scenes import images, small, target


def test_p6_is_computed_from_the_last_map_of_the_backbone_at_equal_channels():
    model = small("retinanet", channels=128).eval()
    assert model.backbone.channels[-1] == model.backbone.out_channels == 128
    seen: list[torch.Tensor] = []
    p6 = model.get_submodule("backbone.fpn.extra_blocks.p6")
    p6.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = images()
    with torch.no_grad():
        model(x)
        last = model.backbone.maps(x)[-1]
    assert torch.equal(seen[0], last)


def test_levels_have_strides_from_8_to_128():
    model = small("retinanet")
    with torch.no_grad():
        maps = model.backbone(torch.rand(1, 3, 256, 128))
    assert [tuple(m.shape[2:]) for m in maps.values()] == [
        (32, 16),
        (16, 8),
        (8, 4),
        (4, 2),
        (2, 1),
    ]


class FixedHead(nn.Module):
    """Logits that choose two anchors, and deltas that move one of them."""

    def __init__(self, chosen: dict[int, tuple[int, float]], shift: float) -> None:
        super().__init__()
        self.chosen, self.shift = chosen, shift

    def forward(self, x: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        count = 9 * sum(m.shape[2] * m.shape[3] for m in x)
        logits = torch.full((1, count, 3), -20.0)
        deltas = torch.zeros(1, count, 4)
        for anchor, (label, logit) in self.chosen.items():
            logits[0, anchor, label] = logit
        deltas[0, :, 0] = self.shift
        return {"cls_logits": logits, "bbox_regression": deltas}


def test_detections_are_decoded_clipped_and_suppressed_by_class():
    model = small("retinanet", anchor_scale=4.0).eval()
    middle = 9 * (4 * 12 + 6)  # the anchors at (48, 32) of the level of stride 8
    # Anchors 3 and 4 have ratio 1 and sides 32 and 40.3, whose IoU is 0.63.
    model.head = FixedHead({middle + 3: (2, 3.0), middle + 4: (2, 2.0), 3: (0, 1.0)}, shift=0.125)
    found = model(torch.rand(1, 3, 64, 96))[0]
    assert found["labels"].tolist() == [2, 0]
    torch.testing.assert_close(found["scores"], torch.tensor([3.0, 1.0]).sigmoid())
    expected = torch.tensor([[36.0, 16, 68, 48], [0, 0, 20, 16]])
    torch.testing.assert_close(found["boxes"], expected)
    model.head = FixedHead({middle + 3: (2, 3.0), middle + 4: (1, 2.0)}, shift=0.0)
    found = model(torch.rand(1, 3, 64, 96))[0]
    assert found["labels"].tolist() == [2, 1]
    assert box_iou(*found["boxes"][:, None])[0, 0] > 0.6


def test_objects_outside_of_the_image_are_left_out():
    model = small("retinanet", anchor_scale=4.0).eval()
    model.head = FixedHead({3: (2, 3.0)}, shift=-9.0)
    found = model(torch.rand(1, 3, 64, 96))[0]
    assert found["boxes"].shape == (0, 4)
    assert found["scores"].shape == found["labels"].shape == (0,)


def test_background_anchors_inside_a_crowd_have_no_loss():
    model = small("retinanet").eval().train()
    model.set_batch_norm("eval")
    x, box = torch.rand(1, 3, 64, 96), [8.0, 8, 40, 40]
    plain = target([box], [1], (64, 96))
    crowd = target([box, [40, 0, 96, 64]], [1, 0], (64, 96))
    crowd["crowd"][1] = True
    with torch.no_grad():
        before, after = model(x, [plain]), model(x, [crowd])
    assert after["cls"] < before["cls"]
    assert after["box"].item() == pytest.approx(before["box"].item())
