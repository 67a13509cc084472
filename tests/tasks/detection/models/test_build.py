from __future__ import annotations

import pytest
import torch
from torch import nn

from convattn.tasks.detection.models import build_detector, method_arguments
from tests.tasks.detection.models.scenes import METHODS, SIZES, images, small, target, targets

FAMILIES = [
    "glnet_nano",
    "acmix_resnet_nano",
    "acmix_pvt_nano",
    "acmix_san_nano",
    "acmix_swin_nano",
    "xvolution_resnet_nano",
]
LOSSES = {
    "retinanet": {"cls", "box"},
    "faster_rcnn": {"rpn_cls", "rpn_box", "cls", "box"},
    "mask_rcnn": {"rpn_cls", "rpn_box", "cls", "box", "mask"},
    "cascade_mask_rcnn": {"rpn_cls", "rpn_box"}
    | {f"{name}_{i}" for name in ("cls", "box", "mask") for i in (1, 2, 3)},
}


def without_gradient(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_family_trains_a_step_and_detects(method, backbone):
    model = small(method, backbone, score=0.0)
    losses = model(images(), targets(), SIZES)
    assert set(losses) == LOSSES[method]
    assert all(loss.dim() == 0 and loss.dtype == torch.float32 for loss in losses.values())
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    assert without_gradient(model) == []
    model.eval()
    with torch.no_grad():
        found = model(images(), sizes=SIZES)
    assert len(found) == 2
    for objects, (height, width) in zip(found, SIZES, strict=True):
        count = len(objects["boxes"])
        assert 0 < count <= 100
        assert objects["boxes"].shape == (count, 4)
        assert objects["boxes"].min() >= 0
        assert objects["boxes"][:, 2].max() <= width
        assert objects["boxes"][:, 3].max() <= height
        assert set(objects["labels"].tolist()) <= {0, 1, 2}
        assert objects["labels"].dtype == torch.int64
        assert (objects["scores"].diff() <= 0).all()
        if model.has_masks:
            assert objects["masks"].shape == (count, 1, 28, 28)
            assert 0 <= objects["masks"].min() <= objects["masks"].max() <= 1
        else:
            assert "masks" not in objects


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_has_a_gradient_without_objects(method):
    model = small(method)
    empty = target([], [], SIZES[0])
    losses = model(images(), [empty, empty], SIZES)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert without_gradient(model) == []
    assert all(losses[name] == 0 for name in losses if "box" in name or "mask" in name)


@pytest.mark.parametrize("method", METHODS)
def test_boxes_stay_within_an_image_of_one_pixel(method):
    model = small(method, score=0.0).eval()
    with torch.no_grad():
        found = model(images(), sizes=[(1, 1), (64, 96)])
    assert (found[0]["boxes"] <= 1).all()
    assert (found[1]["boxes"] > 1).any()


@pytest.mark.parametrize("method", METHODS)
def test_detector_is_rebuilt_from_names_and_weights(method):
    model = small(method, in_chans=1, score=0.0, backbone_args={"drop_path_rate": 0.1}).eval()
    again = small(method, in_chans=1, score=0.0, backbone_args={"drop_path_rate": 0.1}).eval()
    again.load_state_dict(model.state_dict())
    x = images(1)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_detection_does_not_depend_on_the_other_image_of_the_batch():
    model = small("mask_rcnn", score=0.0).eval()
    x = images()
    with torch.no_grad():
        both, alone = model(x), model(x[:1])
    torch.testing.assert_close(both[0], alone[0])


def test_highest_scores_are_kept():
    model = small("retinanet", score=0.0, detections=3).eval()
    x = images()
    with torch.no_grad():
        few = model(x)
        model.detections = 100
        many = model(x)
    assert len(few[0]["scores"]) == 3 < len(many[0]["scores"])
    assert torch.equal(few[0]["scores"], many[0]["scores"][:3])


def test_backbone_of_one_stride_is_an_error():
    for method in METHODS:
        with pytest.raises(ValueError, match=r"acmix_deit_nano .* strides \[16, 16, 16"):
            build_detector(method, "acmix_deit_nano", 3)


def test_unknown_names_are_errors_that_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mask_rcnn'"):
        build_detector("maskrcnn", "glnet_nano", 3)
    with pytest.raises(ValueError, match="did you mean 'glnet_nano'"):
        build_detector("retinanet", "glnet_nan", 3)
    with pytest.raises(TypeError, match="did you mean 'channels'"):
        build_detector("retinanet", "glnet_nano", 3, channel=8)
    with pytest.raises(TypeError, match="retinanet takes no argument 'proposals'"):
        build_detector("retinanet", "glnet_nano", 3, proposals=8)
    with pytest.raises(ValueError, match="unknown box_head 'conf'; did you mean 'conv'"):
        build_detector("cascade_mask_rcnn", "glnet_nano", 3, box_head="conf")


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("num_classes", 0, "num_classes must be at least 1, got 0"),
        ("channels", 0, "channels must be at least 1, got 0"),
        ("nms", 0.0, "nms must be above 0 and at most 1, got 0"),
        ("score", 1.0, "score must be at least 0 and less than 1"),
        ("detections", 0, "detections must be at least 1"),
        ("anchor_scale", 0.0, "anchor_scale must be above 0, got 0"),
        ("head_depth", 5, "head_depth of a RetinaNet must be from 1 to 4, got 5"),
        ("candidates", 0, "candidates must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_errors(argument, value, message):
    with pytest.raises(ValueError, match=message):
        build_detector("retinanet", "glnet_nano", **{"num_classes": 3, argument: value})


def test_arguments_of_the_methods_are_known():
    common = {"in_chans", "channels", "score", "nms", "detections", "backbone_args", "head_depth"}
    for method in METHODS:
        assert common | {"anchor_scale", "candidates"} <= set(method_arguments(method))
    assert "box_head" in method_arguments("cascade_mask_rcnn")
    assert "box_head" not in method_arguments("mask_rcnn")


def test_training_mode_needs_targets():
    with pytest.raises(ValueError, match=r"FasterRCNN in training mode needs targets; .*\.eval"):
        small("faster_rcnn")(images())


def test_layer_groups_of_a_detector_end_with_neck_and_heads():
    model = small("mask_rcnn")
    layer = model.group_matcher()
    layers = {name: layer(name) for name, _ in model.named_parameters()}
    last = max(layers.values())
    rest = {name for name in layers if not name.startswith("backbone.body.")}
    assert {name for name, i in layers.items() if i == last} == rest
    assert {"backbone.fpn.inner_blocks.0.0.weight", "rpn.head.cls_logits.weight"} <= rest


def test_maps_of_the_backbone_may_be_normed():
    model = small("retinanet", "acmix_swin_nano", norm_maps=True).eval()
    with torch.no_grad():
        for each in model.backbone.maps(images()):
            torch.testing.assert_close(
                each.mean(1), torch.zeros_like(each[:, 0]), rtol=0, atol=1e-5
            )
    names = {name for name in model.state_dict() if name.startswith("backbone.norms.")}
    assert names == {f"backbone.norms.{i}.{end}" for i in range(3) for end in ("weight", "bias")}
    plain = small("retinanet", "acmix_swin_nano").state_dict()
    assert not any(name.startswith("backbone.norms.") for name in plain)


@pytest.mark.slow
def test_compilation_does_not_depend_on_the_objects():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = small("faster_rcnn", "acmix_resnet_nano").train()
    model.compile(backend=count)
    model(images(), targets(), SIZES)
    first = len(graphs)
    assert first > 0
    model(images(), [target([[4, 4, 40, 40]], [1], size) for size in SIZES], SIZES)
    assert len(graphs) == first
