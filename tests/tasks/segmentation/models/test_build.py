from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convattn.models import count_macs, create_model
from convattn.tasks.segmentation.models import METHODS, build_segmenter

BACKBONES = (
    "glnet_nano",
    "acmix_resnet_nano",
    "acmix_pvt_nano",
    "acmix_swin_nano",
    "acmix_san_nano",
    "xvolution_resnet_nano",
)
# The figures are for images of 512x2048 and 150 classes, the parameters with the auxiliary head.
TABLE = Path(__file__).parents[4] / "papers" / "segmentation.csv"
with TABLE.open(newline="", encoding="utf-8") as _file:
    ROWS = list(csv.DictReader(_file))
# Windows are counted one by one, so that a large image takes long; the number of multiply-adds
# grows with the area, but for 0.04 % in the pyramid pooling.
SLOW = ("acmix_swin_tiny", "acmix_swin_small")


def segmenter_of(row: dict[str, str]) -> Any:
    arguments = {"img_size": (512, 2048)} if row["backbone"].startswith("swin") else {}
    with torch.device("meta"):
        return build_segmenter(row["method"], row["backbone"], 150, backbone_args=arguments)


def tiny(method: str, backbone: str = "glnet_nano", classes: int = 3, **arguments) -> Any:
    return build_segmenter(method, backbone, classes, channels=16, **arguments)


def image(**arguments) -> Tensor:
    return torch.rand(2, 3, 64, 64, **arguments)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
def test_training_step_gives_every_parameter_a_gradient(method, backbone):
    torch.manual_seed(0)
    model = tiny(method, backbone, backbone_args={"drop_path_rate": 0.0}).train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and not norm.weight.any():
            nn.init.ones_(norm.weight)  # zero at the start, so that its block has no gradient
    losses = model(image(), torch.randint(0, 3, (2, 64, 64)))
    assert set(losses) == ({"loss", "aux"} if method == "upernet" else {"loss"})
    assert losses["loss"].item() == pytest.approx(torch.tensor(3.0).log().item(), abs=0.1)
    sum(losses.values()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    allowed = "slots", "pos", "relative_position", "last"  # parameters at zero gradients
    assert [n for n in silent if not any(word in n for word in allowed)] == []


@pytest.mark.parametrize("method", METHODS)
def test_logits_have_the_size_of_the_image(method):
    model = tiny(method).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 96)).shape == (1, 3, 64, 96)
        assert model(torch.rand(1, 3, 70, 45)).shape == (1, 3, 70, 45)


def each_row(slow: Sequence[str] = ()) -> Any:
    marks = [[pytest.mark.slow] if row["backbone"] in slow else [] for row in ROWS]
    names = [f"{row['method']}-{row['backbone']}" for row in ROWS]
    params = [pytest.param(r, marks=m, id=n) for r, m, n in zip(ROWS, marks, names, strict=True)]
    return pytest.mark.parametrize("row", params)


@each_row()
def test_parameters_are_those_of_the_tables(row):
    model = segmenter_of(row)
    count = sum(p.numel() for p in model.parameters())
    assert count / 1e6 == pytest.approx(float(row["params_m"]), abs=0.01)
    if row["backbone"] == "acmix_swin_small":  # the paper seems to leave the auxiliary head out
        count -= sum(p.numel() for p in model.auxiliary.parameters())
    if row["paper_params_m"]:
        assert f"{count / 1e6:.0f}" == row["paper_params_m"]


@each_row(slow=("acmix_swin_tiny", "acmix_swin_small", "glnet_9g", "glnet_16g"))
def test_multiply_adds_are_those_of_the_table(row):
    size = (224, 224) if row["backbone"] in SLOW else (512, 2048)
    count = count_macs(segmenter_of(row), (3, *size)) * (512 * 2048) / (size[0] * size[1])
    assert count / 1e9 == pytest.approx(float(row["counted_g"]), rel=5e-4)


def test_figures_of_the_table_are_the_papers_to_within_5_percent():
    published = [row for row in ROWS if row["paper_g"]]
    assert [row["method"] for row in published] == 4 * ["semantic_fpn"] + 4 * ["upernet"]
    for row in published:
        assert float(row["counted_g"]) == pytest.approx(float(row["paper_g"]), rel=0.05)


def test_defaults_are_the_sizes_of_the_papers():
    with torch.device("meta"):
        fpn: Any = build_segmenter("semantic_fpn", "glnet_nano", 150)
        upernet: Any = build_segmenter("upernet", "glnet_nano", 150)
    assert fpn.head.classifier.in_channels == 128
    assert fpn.auxiliary is None
    assert upernet.head.classifier.in_channels == 512
    assert upernet.auxiliary.classifier.in_channels == 256
    assert upernet.auxiliary_weight == 0.4
    assert upernet.head.pyramid_pooling.scales == (1, 2, 3, 6)


@pytest.mark.parametrize("method", METHODS)
def test_ignored_pixels_have_no_loss(method):
    model = tiny(method, dropout=0.0, backbone_args={"drop_path_rate": 0.0}).train()
    images, targets = image(), torch.randint(0, 3, (2, 64, 64))
    targets[:, :, :32] = 255
    model.set_batch_norm("eval")
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.0  # both calls see the same statistics
    before = model(images, targets)["loss"]
    logits = model.train()(images, targets.where(targets != 255, 255))["loss"]
    torch.testing.assert_close(before, logits)
    losses = model(images, torch.full((2, 64, 64), 255))
    assert all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_loss_is_the_mean_cross_entropy_of_the_pixels_that_count():
    torch.manual_seed(0)
    model = tiny("semantic_fpn", dropout=0.0, backbone_args={"drop_path_rate": 0.0})
    images, targets = image(), torch.randint(0, 3, (2, 64, 64))
    targets[0, :20] = 255
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats = False
            part.running_mean = part.running_var = None  # evaluation uses the batch too
    loss = model.train()(images, targets)["loss"]
    logits = model.eval()(images)
    expected = torch.nn.functional.cross_entropy(logits, targets, ignore_index=255)
    torch.testing.assert_close(loss, expected)


def test_training_without_targets_is_an_error():
    with pytest.raises(ValueError, match=r"needs targets; call eval\(\)"):
        tiny("semantic_fpn").train()(image())


def test_targets_of_another_size_are_an_error():
    with pytest.raises(ValueError, match=r"shape \(2, 64, 64\), got \(2, 32, 32\)"):
        tiny("semantic_fpn").train()(image(), torch.zeros(2, 32, 32, dtype=torch.int64))


@pytest.mark.parametrize(
    ("backbone", "has_norms"),
    [("acmix_swin_nano", True), ("glnet_nano", True), ("acmix_resnet_nano", False)],
)
def test_maps_of_transformers_get_a_norm_in_upernet(backbone, has_norms):
    assert any(True for _ in tiny("upernet", backbone).norms.parameters()) == has_norms
    assert not list(tiny("semantic_fpn", backbone).norms.parameters())
    assert list(tiny("semantic_fpn", backbone, norm_maps=True).norms.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_backbone_of_one_stride_is_an_error(method):
    with pytest.raises(ValueError, match="strides must increase"):
        tiny(method, "acmix_deit_nano")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "uper_net"}, "did you mean 'upernet'"),
        ({"classes": 256}, "at most 255 classes.*num_classes=256"),
        ({"classes": 0}, "num_classes must be at least 1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1"),
        ({"auxiliary": -0.1}, "auxiliary must be at least 0"),
        ({"head_channels": 0}, "head_channels must be at least 1"),
        ({"pool_scales": (1, 0)}, "pool scale must be at least 1"),
        ({"inference": {"mode": "tiles"}}, "unknown inference 'tiles'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(**{"method": "upernet", **arguments})


def test_backbone_of_timm_and_grey_images():
    model = tiny("upernet", "convnext_atto", in_chans=1).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 1, 64, 64)).shape == (1, 3, 64, 64)


def test_backbone_starts_from_the_weights_of_a_classifier():
    classifier = create_model("glnet_nano", num_classes=7)
    model = tiny("upernet")
    report = model.load_backbone(classifier.state_dict())
    assert not report.missing
    assert all("head" in name or "norm" in name for name in report.unexpected)
    ours = model.backbone.body.state_dict()
    first = next(iter(ours))
    assert torch.equal(ours[first], classifier.state_dict()[first.removeprefix("model.")])


@pytest.mark.parametrize("method", METHODS)
def test_layer_decay_covers_backbone_and_head(method):
    from timm.optim import param_groups_layer_decay

    model = tiny(method)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert {scale[id(p)] for p in model.head.parameters()} == {1.0}
    assert max(scale[id(p)] for p in model.backbone.parameters()) < 1


@pytest.mark.parametrize(("method", "backbone"), [(method, "resnet10t") for method in METHODS])
def test_exported_program_takes_other_sizes(method, backbone):
    model = tiny(method, backbone).eval()
    rows, columns = (torch.export.Dim(name, min=2, max=64) for name in ("rows", "columns"))
    sizes = {0: torch.export.Dim("batch"), 2: 32 * rows, 3: 32 * columns}
    with torch.no_grad():
        program = torch.export.export(
            model, (torch.rand(2, 3, 64, 96),), dynamic_shapes=(sizes,), strict=False
        ).module()
        for size in ((1, 3, 160, 192), (3, 3, 64, 160)):
            x = torch.rand(size)
            torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)
