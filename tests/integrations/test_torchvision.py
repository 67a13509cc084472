from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers.norm_act import FrozenBatchNorm2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from convattn.integrations.torchvision import backbone_with_fpn

NANO = ["glnet_nano", "acmix_resnet_nano"]


def anchors(levels: int) -> AnchorGenerator:
    return AnchorGenerator(tuple((8 * 2**i,) for i in range(levels)), ((0.5, 1.0, 2.0),) * levels)


def retinanet(name: str) -> nn.Module:
    backbone = backbone_with_fpn(
        name, out_indices=(-3, -2, -1), out_channels=32, extra_blocks=LastLevelP6P7(32, 32)
    )
    return RetinaNet(backbone, num_classes=3, anchor_generator=anchors(5), min_size=64, max_size=96)


def faster_rcnn(name: str, kind: type[FasterRCNN] = FasterRCNN) -> nn.Module:
    backbone = backbone_with_fpn(name, out_channels=32)
    return kind(
        backbone,
        num_classes=3,
        rpn_anchor_generator=anchors(5),
        min_size=64,
        max_size=96,
        rpn_pre_nms_top_n_train=50,
        rpn_post_nms_top_n_train=20,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_test=20,
    )


def mask_rcnn(name: str) -> nn.Module:
    return faster_rcnn(name, MaskRCNN)


def scenes() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of different odd sizes, with a box, a label and a mask each."""
    images = [torch.rand(3, 61, 77), torch.rand(3, 83, 49)]
    targets = []
    for image in images:
        mask = torch.zeros(1, *image.shape[1:], dtype=torch.uint8)
        mask[:, 10:40, 8:44] = 1
        box = torch.tensor([[8.0, 10.0, 44.0, 40.0]])
        targets.append({"boxes": box, "labels": torch.tensor([1]), "masks": mask})
    return images, targets


@pytest.mark.parametrize("detector", [retinanet, faster_rcnn, mask_rcnn])
@pytest.mark.parametrize("name", NANO)
def test_detectors_train_and_predict_on_odd_images(name, detector):
    model = detector(name)
    images, targets = scenes()
    losses = model(images, targets)
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    missing = [n for n, p in model.backbone.body.named_parameters() if p.grad is None]
    assert missing == []
    model.eval()
    with torch.no_grad():
        found = model(images)
    assert [set(f) >= {"boxes", "labels", "scores"} for f in found] == [True, True]
    if detector is mask_rcnn:
        for image, prediction in zip(images, found, strict=True):
            assert prediction["masks"].shape[2:] == image.shape[1:]


@pytest.mark.parametrize(
    "name", [*NANO, "resnet10t", "swin_tiny_patch4_window7_224", "test_vit.r160_in1k"]
)
def test_pyramid_has_a_map_per_level_and_a_pooled_one(name):
    indices = (-2, -1) if "vit" in name else (-4, -3, -2, -1)
    backbone: Any = backbone_with_fpn(name, out_indices=indices, out_channels=16).eval()
    size = backbone.body.pretrained_cfg["input_size"][1:]
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, *size))
    assert list(maps) == [*map(str, range(len(indices))), "pool"]
    assert {m.shape[1] for m in maps.values()} == {16} == {backbone.out_channels}
    strides = backbone.body.feature_info.reduction()
    assert [m.shape[2] for m in maps.values()][:-1] == [-(-size[0] // s) for s in strides]


def test_images_of_any_size_and_other_channels():
    backbone = backbone_with_fpn("glnet_nano", out_channels=16, in_chans=1).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(2, 1, 45, 71))
    assert [tuple(m.shape[2:]) for m in maps.values()] == [(12, 18), (6, 9), (3, 5), (2, 3), (1, 2)]


STAGES = {
    "glnet_nano": ("model.stages.2", "model.stages.3"),
    "acmix_resnet_nano": ("layer3", "layer4"),
    "resnet10t": ("layer3", "layer4"),
}


@pytest.mark.parametrize("name", STAGES)
def test_frozen_layers_are_those_that_earlier_maps_depend_on(name):
    body: Any = backbone_with_fpn(name, trainable_layers=2, in_chans=2).body
    for parameter_name, parameter in body.named_parameters():
        assert parameter.requires_grad == parameter_name.startswith(STAGES[name]), parameter_name
    for module_name, module in body.named_modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            assert isinstance(module, nn.BatchNorm2d) == module_name.startswith(STAGES[name])
    frozen = {k: v.clone() for k, v in body.state_dict().items() if not k.startswith(STAGES[name])}
    assert any("running_mean" in key for key in frozen)
    body.train()(torch.rand(2, 2, 64, 64))
    after = {key: body.state_dict()[key] for key in frozen}
    torch.testing.assert_close(after, frozen, rtol=0, atol=0)


def test_trainable_layers_are_in_training_mode():
    body = backbone_with_fpn("acmix_resnet_nano", trainable_layers=1).body
    assert body.training
    assert body.get_submodule("layer4").training


def test_all_layers_or_none_can_be_trained():
    assert all(p.requires_grad for p in backbone_with_fpn("glnet_nano").body.parameters())
    everything = backbone_with_fpn("acmix_resnet_nano", trainable_layers=4).body
    assert all(p.requires_grad for p in everything.parameters())
    nothing = backbone_with_fpn("acmix_resnet_nano", trainable_layers=0).body
    assert not any(p.requires_grad for p in nothing.parameters())


def test_errors_name_the_value_and_the_fix():
    with pytest.raises(ValueError, match=r"trainable_layers must be from 0 to 4, .* got 5"):
        backbone_with_fpn("glnet_nano", trainable_layers=5)
    fraction: Any = 2.5
    with pytest.raises(ValueError, match=r"trainable_layers must be from 0 to 4, .* got 2\.5"):
        backbone_with_fpn("glnet_nano", trainable_layers=fraction)
    with pytest.raises(ValueError, match=r"strides \[16, 16, 16, 16\], .* out_indices=\(-1,\)"):
        backbone_with_fpn("acmix_deit_nano")
    with pytest.raises(ValueError, match="did you mean 'glnet_nano'"):
        backbone_with_fpn("glnet_nan")
    with pytest.raises(TypeError, match="did you mean 'in_chans'"):
        backbone_with_fpn("glnet_nano", in_chan=1)
    with pytest.raises(ValueError, match="out_channels must be at least 1"):
        backbone_with_fpn("glnet_nano", out_channels=0)
